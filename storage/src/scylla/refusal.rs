//! What a database answers to a conditional batch, in both shapes. **Invariant:** `Yes` is said only of an answer that can
//! mean nothing else; whatever does not fit is an error, and the batch stays undecided.
//!
//! Cassandra answers one row when it has written, with `[applied]` alone; when it refuses, the rows that exist among those
//! with a condition, each with the partition's statics, or one row with the statics, or one with nothing but `[applied]`.
//! ScyllaDB always answers one row for every statement of the batch, in statement order, with the old values of the columns
//! that stand in conditions, and nulls where there was no row.

use super::values::{KIND_ID, from_big};
use crate::rows::{Applied, Head};
use chappe_protocol::id::{EnvelopeId, Seq};
use chappe_protocol::time::UnixMillis;

/// One row of an answer; a column that the answer does not have is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct AnswerRow {
    pub(super) applied: Option<bool>,
    pub(super) kind: Option<i8>,
    pub(super) k: Option<Vec<u8>>,
    pub(super) head: Option<i64>,
    pub(super) opened_at: Option<i64>,
    pub(super) bytes_total: Option<i64>,
    pub(super) seq: Option<i64>,
}

/// What the batch was.
pub(super) struct Asked<'a> {
    /// The register that it compared.
    pub(super) expected: Option<Seq>,
    /// For every statement in order: the id whose absence it demands, if it does.
    pub(super) ids: &'a [Option<EnvelopeId>],
}

/// The answer does not fit the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Misshapen(pub(super) &'static str);

/// Whether a conditional statement or batch was applied; for those whose callers read again when it was not.
pub(super) fn applied(rows: &[AnswerRow]) -> Result<bool, Misshapen> {
    let first = rows.first().and_then(|row| row.applied).ok_or(Misshapen("no [applied]"))?;
    if rows.iter().any(|row| row.applied != Some(first)) {
        return Err(Misshapen("[applied] differs from row to row"));
    }
    Ok(first)
}

/// The answer to an append.
pub(super) fn decode(asked: &Asked<'_>, rows: &[AnswerRow]) -> Result<Applied, Misshapen> {
    let yes = applied(rows)?;
    let by_statement = rows.len() == asked.ids.len();
    let head = head(rows)?;
    let existing = existing(asked, rows, by_statement)?;
    if yes {
        if !by_statement && rows.len() != 1 {
            return Err(Misshapen("an applied batch has one row, or one for each statement"));
        }
        let before = head.map(|head| head.seq);
        if !existing.is_empty()
            || (by_statement && before != asked.expected)
            || (!by_statement && before.is_some())
        {
            return Err(Misshapen("applied against its own conditions"));
        }
        return Ok(Applied::Yes);
    }
    if head.map(|head| head.seq) == asked.expected && existing.is_empty() {
        return Err(Misshapen("refused without a reason"));
    }
    Ok(Applied::No { head, existing })
}

/// The register; every row that shows one shows the same.
fn head(rows: &[AnswerRow]) -> Result<Option<Head>, Misshapen> {
    let mut found = None;
    for row in rows {
        let head = match (row.head, row.opened_at, row.bytes_total) {
            (None, None, None) => continue,
            (Some(seq), Some(opened_at), Some(bytes_total)) => (seq, opened_at, bytes_total),
            _ => return Err(Misshapen("half a register")),
        };
        if *found.get_or_insert(head) != head {
            return Err(Misshapen("two registers"));
        }
    }
    let number = |value| from_big(value).map_err(|damaged| Misshapen(damaged.0));
    found
        .map(|(seq, opened_at, bytes_total)| {
            Ok(Head {
                seq: Seq(number(seq)?),
                opened_at: UnixMillis(number(opened_at)?),
                bytes_total: number(bytes_total)?,
            })
        })
        .transpose()
}

/// The ids of the batch that stand in this bucket, in the batch's order.
fn existing(
    asked: &Asked<'_>,
    rows: &[AnswerRow],
    by_statement: bool,
) -> Result<Vec<(EnvelopeId, Seq)>, Misshapen> {
    let mut found = Vec::new();
    for (place, row) in rows.iter().enumerate() {
        let Some(seq) = row.seq else { continue };
        let seq = Seq(from_big(seq).map_err(|damaged| Misshapen(damaged.0))?);
        let key = row.k.as_deref().map(|k| EnvelopeId::from_slice(k).ok_or(Misshapen("not an id")));
        let key = key.transpose()?;
        let demanded = if by_statement { asked.ids.get(place).copied().flatten() } else { key };
        let id = demanded.ok_or(Misshapen("a seq where no id was compared"))?;
        if key.is_some_and(|key| key != id) || row.kind.is_some_and(|kind| kind != KIND_ID) {
            return Err(Misshapen("the row of another statement"));
        }
        if !asked.ids.contains(&Some(id)) || found.iter().any(|(known, _)| *known == id) {
            return Err(Misshapen("an id that the batch does not hold, or twice"));
        }
        found.push((id, seq));
    }
    found.sort_by_key(|(id, _)| asked.ids.iter().position(|asked| *asked == Some(*id)));
    Ok(found)
}

#[cfg(test)]
mod tests;
