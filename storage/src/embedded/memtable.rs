//! What was written since the pages were written last, in memory. **Invariant:** what stands here is in the journal, and is newer
//! than what the pages hold.
//!
//! A batch that is durable in the journal goes into the active memtable. When that is full it is frozen, a thread of its own takes
//! it into the pages, and it is forgotten here. A read looks into the active one, then into the frozen one, then into the pages.
//! (The in-memory component of a log-structured merge tree: O'Neil and others, 1996.)

use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// Rows of a memtable, beyond which it is frozen.
const ROWS_MAX: usize = 64 * 1024;
/// Their bytes.
const BYTES_MAX: usize = 16 << 20;
/// So little stays in memory when nobody writes any more.
const KEPT_BYTES: usize = 256 * 1024;
/// What a row takes beside its key and value: the tree's node, two pointers to memory and what malloc rounds up.
const ROW_BYTES: usize = 96;

/// What is known of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found<'a> {
    Value(&'a [u8]),
    Removed,
    /// Nothing: it stands where it was before, if it does.
    Unknown,
}

/// Rows and removals; a later one takes the place of an earlier one.
#[derive(Debug, Default)]
pub(super) struct Memtable {
    rows: BTreeMap<Vec<u8>, Option<Bytes>>,
    bytes: usize,
}

impl Memtable {
    /// A row, or its removal (`None`).
    pub(super) fn put(&mut self, key: Vec<u8>, value: Option<Bytes>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Bytes::len) + ROW_BYTES;
        self.rows.insert(key, value);
    }

    pub(super) fn get(&self, key: &[u8]) -> Found<'_> {
        match self.rows.get(key) {
            Some(Some(value)) => Found::Value(value),
            Some(None) => Found::Removed,
            None => Found::Unknown,
        }
    }

    /// Those from `from` (inclusive) to `to` (exclusive).
    pub(super) fn range<'a>(
        &'a self,
        from: &'a [u8],
        to: &'a [u8],
    ) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> {
        // A range that is empty or the wrong way round has nothing in it, and would be a panic of the map.
        let bounds =
            (from < to).then(|| self.rows.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))));
        bounds.into_iter().flatten().map(|(key, value)| (&key[..], value.as_deref()))
    }

    /// All of it, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.rows.iter().map(|(key, value)| (&key[..], value.as_deref()))
    }

    /// Takes over what another one holds; it is the later one.
    fn take(&mut self, later: Self) {
        self.bytes += later.bytes;
        self.rows.extend(later.rows);
    }

    /// Those of a range, as a memtable of its own.
    pub(super) fn cut(&self, from: &[u8], to: &[u8]) -> Self {
        let mut cut = Self::default();
        self.copy(from, to, &mut cut);
        cut
    }

    fn copy(&self, from: &[u8], to: &[u8], into: &mut Self) {
        if from < to {
            for (key, value) in self.rows.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))) {
                into.put(key.clone(), value.clone());
            }
        }
    }
}

/// How full the active memtable is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fill {
    /// It is not worth a write of the pages, as long as there is nothing else to do.
    Little,
    /// It goes on.
    Room,
    /// It is to be frozen.
    Full,
    /// It takes no more.
    Over,
}

/// The memtables above the pages.
#[derive(Debug, Default)]
pub(super) struct Memtables {
    active: Memtable,
    frozen: Option<Arc<Memtable>>,
}

impl Memtables {
    pub(super) fn fill(&self) -> Fill {
        let over =
            |times| self.active.rows.len() >= ROWS_MAX * times || self.active.bytes >= BYTES_MAX * times;
        match () {
            () if over(2) => Fill::Over,
            () if over(1) => Fill::Full,
            () if self.active.bytes >= KEPT_BYTES => Fill::Room,
            () => Fill::Little,
        }
    }

    /// What a batch has written; the batch is in the journal.
    pub(super) fn commit(&mut self, batch: Memtable) {
        self.active.take(batch);
    }

    /// The active memtable is to go into the pages, if there is anything in it and no other is on its way.
    pub(super) fn freeze(&mut self) -> bool {
        let may = self.frozen.is_none() && !self.active.rows.is_empty();
        if may {
            self.frozen = Some(Arc::new(std::mem::take(&mut self.active)));
        }
        may
    }

    /// What is on its way into the pages.
    pub(super) fn frozen(&self) -> Option<Arc<Memtable>> {
        self.frozen.clone()
    }

    /// The frozen memtable is in the pages.
    pub(super) fn thaw(&mut self) {
        self.frozen = None;
    }

    pub(super) fn get(&self, key: &[u8]) -> Found<'_> {
        match (self.active.get(key), &self.frozen) {
            (Found::Unknown, Some(frozen)) => frozen.get(key),
            (found, _) => found,
        }
    }

    /// Everything known here of this range, as a memtable of its own.
    pub(super) fn cut(&self, from: &[u8], to: &[u8]) -> Memtable {
        let mut cut = self.frozen.as_ref().map(|frozen| frozen.cut(from, to)).unwrap_or_default();
        self.active.copy(from, to, &mut cut);
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(&str, Option<&'static str>)]) -> Memtable {
        let mut table = Memtable::default();
        for (key, value) in rows {
            table.put(key.as_bytes().to_vec(), value.map(|value| Bytes::from_static(value.as_bytes())));
        }
        table
    }

    fn texts<'a>(rows: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> Vec<(String, Option<String>)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        rows.map(|(key, value)| (text(key), value.map(text))).collect()
    }

    #[test]
    fn the_later_one_hides_the_earlier_and_a_removal_hides_too() {
        let mut tables = Memtables::default();
        tables.commit(table(&[("a", Some("1")), ("b", Some("1")), ("c", Some("1"))]));
        assert!(tables.freeze());
        tables.commit(table(&[("b", None), ("c", Some("2")), ("d", Some("2"))]));
        assert_eq!(tables.get(b"a"), Found::Value(b"1"));
        assert_eq!((tables.get(b"b"), tables.get(b"x")), (Found::Removed, Found::Unknown));
        assert_eq!(tables.get(b"c"), Found::Value(b"2"));
        let cut = tables.cut(b"a", b"d");
        let row = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
        assert_eq!(texts(cut.iter()), [row("a", Some("1")), row("b", None), row("c", Some("2"))]);
        assert_eq!(texts(cut.range(b"b", b"c")), [row("b", None)]);
        assert_eq!(texts(cut.range(b"c", b"b")), []);
    }

    #[test]
    fn one_at_a_time_is_frozen_and_an_empty_one_never() {
        let mut tables = Memtables::default();
        assert!(!tables.freeze(), "there is nothing in it");
        tables.commit(table(&[("a", Some("1"))]));
        assert!(tables.freeze());
        tables.commit(table(&[("a", Some("2"))]));
        assert!(!tables.freeze(), "another is on its way");
        tables.thaw();
        assert_eq!(tables.get(b"a"), Found::Value(b"2"));
        assert!(tables.freeze());
        tables.thaw();
        assert_eq!(tables.get(b"a"), Found::Unknown, "the pages know it");
    }

    #[test]
    fn a_memtable_is_full_by_rows_and_by_bytes() {
        let mut tables = Memtables::default();
        for number in 0..ROWS_MAX * 2 {
            let little = number * (ROW_BYTES + 8) < KEPT_BYTES;
            let want = if little { Fill::Little } else { [Fill::Room, Fill::Full][number / ROWS_MAX] };
            assert_eq!(tables.fill(), want, "{number}");
            let mut one = Memtable::default();
            one.put(number.to_be_bytes().to_vec(), None);
            tables.commit(one);
        }
        assert_eq!(tables.fill(), Fill::Over);
        let mut tables = Memtables::default();
        for want in [Fill::Little, Fill::Full, Fill::Over] {
            assert_eq!(tables.fill(), want);
            let mut one = Memtable::default();
            one.put(vec![7], Some(vec![0; BYTES_MAX].into()));
            tables.commit(one);
        }
    }
}
