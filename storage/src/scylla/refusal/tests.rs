//! Both shapes, and shapes that no database has.

use super::*;

fn id(n: u8) -> EnvelopeId {
    EnvelopeId([n; 16])
}

/// Head, then slot, payload and id of entries 1 and 2.
fn ids() -> Vec<Option<EnvelopeId>> {
    vec![None, None, None, Some(id(1)), None, None, Some(id(2))]
}

fn decoded(expected: Option<u64>, rows: &[AnswerRow]) -> Result<Applied, Misshapen> {
    decode(&Asked { expected: expected.map(Seq), ids: &ids() }, rows)
}

fn row(applied: bool) -> AnswerRow {
    AnswerRow { applied: Some(applied), ..AnswerRow::default() }
}

fn with_head(row: AnswerRow, seq: i64) -> AnswerRow {
    AnswerRow { head: Some(seq), opened_at: Some(5), bytes_total: Some(70), ..row }
}

#[allow(clippy::needless_pass_by_value, reason = "the rows are made in place")]
fn with_id(row: AnswerRow, n: u8, seq: i64) -> AnswerRow {
    AnswerRow { kind: Some(KIND_ID), k: Some(vec![n; 16]), seq: Some(seq), ..row }
}

#[allow(clippy::unnecessary_wraps, reason = "it stands for what is decoded")]
fn no(seq: Option<u64>, existing: &[(u8, u64)]) -> Result<Applied, Misshapen> {
    let head = seq.map(|seq| Head { seq: Seq(seq), opened_at: UnixMillis(5), bytes_total: 70 });
    Ok(Applied::No { head, existing: existing.iter().map(|(n, seq)| (id(*n), Seq(*seq))).collect() })
}

/// ScyllaDB's rows: one for each statement, each with the statics.
fn by_statement(applied: bool, seq: Option<i64>) -> Vec<AnswerRow> {
    ids().iter().map(|_| seq.map_or_else(|| row(applied), |seq| with_head(row(applied), seq))).collect()
}

#[test]
fn cassandra_applied() {
    assert_eq!(decoded(Some(7), &[row(true)]), Ok(Applied::Yes));
    assert_eq!(decoded(None, &[row(true)]), Ok(Applied::Yes));
}

#[test]
fn cassandra_refused() {
    assert_eq!(decoded(Some(7), &[with_head(row(false), 9)]), no(Some(9), &[]), "a stale head");
    assert_eq!(decoded(None, &[with_head(row(false), 9)]), no(Some(9), &[]), "the bucket is open already");
    assert_eq!(decoded(Some(7), &[row(false)]), no(None, &[]), "there is no register");
    let erased = with_head(row(false), i64::MAX);
    assert_eq!(decoded(Some(7), &[erased]), no(Some(u64::MAX), &[]));
    let one = with_id(with_head(row(false), 7), 2, 6);
    assert_eq!(decoded(Some(7), &[one]), no(Some(7), &[(2, 6)]), "the head fits, an id exists");
    let both = [with_id(with_head(row(false), 9), 2, 6), with_id(with_head(row(false), 9), 1, 9)];
    assert_eq!(decoded(Some(7), &both), no(Some(9), &[(1, 9), (2, 6)]), "in the batch's order");
    // The row of an id whose time has run out: there, and empty.
    let empty = AnswerRow { seq: None, ..with_id(with_head(row(false), 9), 1, 0) };
    assert_eq!(decoded(Some(7), &[empty]), no(Some(9), &[]));
}

#[test]
fn scylla_applied() {
    assert_eq!(decoded(Some(7), &by_statement(true, Some(7))), Ok(Applied::Yes));
    assert_eq!(decoded(None, &by_statement(true, None)), Ok(Applied::Yes));
    let mut only_first_shows_it = by_statement(true, None);
    only_first_shows_it[0] = with_head(row(true), 7);
    assert_eq!(decoded(Some(7), &only_first_shows_it), Ok(Applied::Yes));
}

#[test]
fn scylla_refused() {
    assert_eq!(decoded(Some(7), &by_statement(false, Some(9))), no(Some(9), &[]));
    assert_eq!(decoded(Some(7), &by_statement(false, None)), no(None, &[]));
    let mut rows = by_statement(false, Some(9));
    rows[6] = with_id(rows[6].clone(), 2, 8);
    assert_eq!(decoded(Some(7), &rows), no(Some(9), &[(2, 8)]));
    rows[6].k = None;
    rows[6].kind = None;
    assert_eq!(decoded(Some(7), &rows), no(Some(9), &[(2, 8)]), "known by its place");
    rows[3] = with_id(rows[3].clone(), 1, 9);
    assert_eq!(decoded(Some(7), &rows), no(Some(9), &[(1, 9), (2, 8)]));
    // Keys without values: the row of a statement whose row is not there, or of an id that ran out.
    rows[3].seq = None;
    rows[2] = AnswerRow { kind: Some(0), k: Some(vec![0; 8]), ..rows[2].clone() };
    assert_eq!(decoded(Some(7), &rows), no(Some(9), &[(2, 8)]));
}

#[test]
fn what_does_not_fit_is_no_answer() {
    let hostile: Vec<(&str, Option<u64>, Vec<AnswerRow>)> = vec![
        ("nothing", Some(7), vec![]),
        ("no [applied]", Some(7), vec![AnswerRow::default()]),
        ("yes and no", Some(7), vec![row(true), row(false)]),
        ("yes and nothing", Some(7), vec![row(true), AnswerRow::default()]),
        ("yes twice", Some(7), vec![row(true), row(true)]),
        ("a row too few", Some(7), by_statement(true, Some(7))[1..].to_vec()),
        ("a row too many", Some(7), [by_statement(true, Some(7)), vec![row(true)]].concat()),
        ("yes with another head", Some(7), by_statement(true, Some(8))),
        ("yes without the head", Some(7), by_statement(true, None)),
        ("yes with a head where none was expected", None, by_statement(true, Some(7))),
        ("yes with a register behind it", Some(7), vec![with_head(row(true), 7)]),
        ("yes with an id", Some(7), vec![with_id(row(true), 1, 3)]),
        ("no without a reason", Some(7), vec![with_head(row(false), 7)]),
        ("no without a reason, new bucket", None, vec![row(false)]),
        ("no without a reason, by statement", Some(7), by_statement(false, Some(7))),
        ("two registers", Some(7), vec![with_head(row(false), 8), with_head(row(false), 9)]),
        ("a register below zero", Some(7), vec![with_head(row(false), -2)]),
        ("half a register", Some(7), vec![AnswerRow { bytes_total: None, ..with_head(row(false), 9) }]),
        ("a strange id", Some(7), vec![with_id(with_head(row(false), 9), 3, 1)]),
        ("an id twice", Some(7), vec![with_id(row(false), 1, 1), with_id(row(false), 1, 2)]),
        ("a seq without an id", Some(7), vec![AnswerRow { seq: Some(1), ..row(false) }]),
        ("a seq of a slot", Some(7), vec![AnswerRow { kind: Some(0), ..with_id(row(false), 1, 1) }]),
        ("a short id", Some(7), vec![AnswerRow { k: Some(vec![1; 8]), ..with_id(row(false), 1, 1) }]),
        ("a seq below zero", Some(7), vec![with_id(row(false), 1, -1)]),
    ];
    for (name, expected, rows) in hostile {
        assert!(decoded(expected, &rows).is_err(), "{name}");
    }
    let mut elsewhere = by_statement(false, Some(9));
    elsewhere[6] = with_id(elsewhere[6].clone(), 1, 8);
    assert!(decoded(Some(7), &elsewhere).is_err(), "the id of another statement");
    let mut on_a_slot = by_statement(false, Some(9));
    on_a_slot[1].seq = Some(3);
    assert!(decoded(Some(7), &on_a_slot).is_err(), "a seq where no id was compared");
}

/// Whatever comes: `Yes` only if every row says so and nothing contradicts it.
#[test]
fn a_yes_is_never_made_up() {
    let mut rng = chappe_protocol::testing::Rng::new(11);
    let mut yes = 0;
    for _ in 0..200_000 {
        let count = if rng.percent(50) { 7 } else { rng.below(4) };
        let mostly = rng.percent(50);
        let mut rows = Vec::new();
        for _ in 0..count {
            let odd = if rng.percent(50) { None } else { Some(!mostly) };
            let applied = if rng.percent(90) { Some(mostly) } else { odd };
            let mut row = AnswerRow { applied, ..AnswerRow::default() };
            if rng.percent(50) {
                row = with_head(row, *rng.pick(&[7, 7, 7, 9, -1]).unwrap());
            }
            if rng.percent(20) {
                row = with_id(row, *rng.pick(&[0, 1, 2, 3]).unwrap(), *rng.pick(&[-1, 0, 5, 9]).unwrap());
            }
            rows.push(row);
        }
        let expected = if rng.percent(50) { None } else { Some(7) };
        if decoded(expected, &rows) == Ok(Applied::Yes) {
            yes += 1;
            assert!(!rows.is_empty() && rows.iter().all(|row| row.applied == Some(true)), "{rows:?}");
            assert!(rows.iter().all(|row| row.seq.is_none()), "{rows:?}");
            let before = expected.map(|seq| i64::try_from(seq).unwrap());
            assert!(rows.iter().all(|row| row.head.is_none() || row.head == before), "{rows:?}");
        }
    }
    assert!(yes > 100, "{yes}");
}
