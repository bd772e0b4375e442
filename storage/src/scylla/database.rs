//! Sending statements: a bounded number at once, each counted and timed, each error with its meaning.
//! **Invariant:** a statement that finds no place was not sent.

use super::clock::{Clock, SAMPLES};
use super::config::ScyllaConfig;
use super::errors::{Kind, store_error};
use super::refusal::{AnswerRow, Misshapen, applied};
use super::statements::{Statement, Statements};
use super::stats::{Counters, add};
use super::values::{Damaged, Value};
use crate::error::{Result, StoreError};
use chappe_protocol::time::{Millis, UnixMillis};
use scylla::client::session::Session;
use scylla::errors::ExecutionError;
use scylla::response::query_result::{QueryResult, QueryRowsResult};
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::{Consistency, Statement as Unprepared};
use scylla::value::{CqlTimestamp, CqlValue, Row};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Of the time that a statement may take, the part that it may wait to be sent.
const WAIT_PART: u64 = 6;
/// What a sample of the clock may take; a slow one would be worth little.
const SAMPLE_TIMEOUT: Duration = Duration::from_millis(500);

pub(super) struct Database {
    pub(super) session: Session,
    pub(super) statements: Statements,
    pub(super) clock: Clock,
    pub(super) counters: Counters,
    permits: Semaphore,
    wait: Duration,
}

impl Database {
    pub(super) fn new(session: Session, statements: Statements, clock: Clock, config: &ScyllaConfig) -> Self {
        Self {
            session,
            statements,
            clock,
            counters: Counters::default(),
            permits: Semaphore::new(config.in_flight_max.clamp(1, Semaphore::MAX_PERMITS)),
            wait: Millis(config.request_timeout.0 / WAIT_PART).to_std(),
        }
    }

    /// A place among the statements under way.
    pub(super) async fn place(&self) -> Result<SemaphorePermit<'_>> {
        if let Ok(place) = self.permits.try_acquire() {
            return Ok(place);
        }
        if let Ok(Ok(place)) = tokio::time::timeout(self.wait, self.permits.acquire()).await {
            return Ok(place);
        }
        add(&self.counters.refused_full, 1);
        Err(StoreError::Unavailable("too many statements are under way".into()))
    }

    /// Sends a statement.
    pub(super) async fn run(&self, statement: &Statement, values: &[Value<'_>]) -> Result<QueryResult> {
        let place = self.place().await?;
        self.run_placed(place, statement, values).await
    }

    /// Sends a statement that has its place already.
    pub(super) async fn run_placed(
        &self,
        _place: SemaphorePermit<'_>,
        statement: &Statement,
        values: &[Value<'_>],
    ) -> Result<QueryResult> {
        self.refresh_clock().await;
        let began = self.clock.mono();
        let answer = self.session.execute_unpaged(&statement.prepared, values).await;
        self.count(statement.kind, began, answer)
    }

    /// Sends statements as one unlogged batch.
    pub(super) async fn run_batch(
        &self,
        kind: Kind,
        statements: &[&Statement],
        values: &[Vec<Value<'_>>],
    ) -> Result<Vec<AnswerRow>> {
        let _place = self.place().await?;
        self.refresh_clock().await;
        let mut batch = Batch::new(BatchType::Unlogged);
        for statement in statements {
            batch.append_statement(statement.prepared.clone());
        }
        if let Some(first) = statements.first() {
            batch.set_execution_profile_handle(first.prepared.get_execution_profile_handle().cloned());
        }
        let began = self.clock.mono();
        let answer = self.session.batch(&batch, values).await;
        let answer = self.count(kind, began, answer)?;
        answer_rows(answer).map_err(|why| self.misshapen(why))
    }

    /// Sends a lightweight transaction of one statement; whether it was applied.
    pub(super) async fn run_if(&self, statement: &Statement, values: &[Value<'_>]) -> Result<bool> {
        let answer = self.run(statement, values).await?;
        let rows = answer_rows(answer).map_err(|why| self.misshapen(why))?;
        applied(&rows).map_err(|why| self.misshapen(why))
    }

    /// The same with several, in one partition.
    pub(super) async fn run_batch_if(
        &self,
        statements: &[&Statement],
        values: &[Vec<Value<'_>>],
    ) -> Result<bool> {
        let rows = self.run_batch(Kind::Conditional, statements, values).await?;
        applied(&rows).map_err(|why| self.misshapen(why))
    }

    /// An answer to a write that nobody can read: perhaps it was written.
    pub(super) fn misshapen(&self, why: Misshapen) -> StoreError {
        add(&self.counters.misshapen, 1);
        StoreError::Unknown(format!("the database's answer cannot be read: {}", why.0))
    }

    fn count(
        &self,
        kind: Kind,
        began: chappe_protocol::time::Time,
        answer: Result<QueryResult, ExecutionError>,
    ) -> Result<QueryResult> {
        self.counters.done(kind, self.clock.mono() - began);
        answer.map_err(|error| {
            let error = store_error(kind, &error);
            self.counters.failed(&error);
            error
        })
    }

    /// Takes a first set of samples.
    pub(super) async fn set_clock(&self) -> bool {
        let mut taken = 0;
        for _ in 0..SAMPLES {
            taken += usize::from(self.sample_clock().await);
        }
        taken > 0
    }

    async fn refresh_clock(&self) {
        if self.clock.due() {
            self.sample_clock().await;
        }
    }

    async fn sample_clock(&self) -> bool {
        let mut ask = Unprepared::new("SELECT toTimestamp(now()) FROM system.local");
        ask.set_consistency(Consistency::One);
        ask.set_request_timeout(Some(SAMPLE_TIMEOUT));
        let sent = self.clock.mono();
        let Ok(answer) = self.session.query_unpaged(ask, ()).await else { return false };
        let told = answer.into_rows_result().ok().and_then(|rows| rows.first_row::<(CqlTimestamp,)>().ok());
        let Some(told) = told.and_then(|(told,)| u64::try_from(told.0).ok()) else { return false };
        self.clock.learn(sent, UnixMillis(told));
        add(&self.counters.clock_samples, 1);
        true
    }
}

/// The rows of a read.
pub(super) fn rows(answer: QueryResult) -> Result<QueryRowsResult> {
    answer.into_rows_result().map_err(|_| Damaged("an answer without rows").into())
}

/// A row that cannot be read as what it should be.
pub(super) fn damaged<E>(_: E) -> StoreError {
    Damaged("a row").into()
}

/// The rows of an answer to a conditional write, by the names of their columns.
pub(super) fn answer_rows(answer: QueryResult) -> Result<Vec<AnswerRow>, Misshapen> {
    let rows = answer.into_rows_result().map_err(|_| Misshapen("no rows"))?;
    let names: Vec<String> = rows.column_specs().iter().map(|spec| spec.name().to_owned()).collect();
    let place = |name: &str| names.iter().position(|known| known == name);
    let [applied, kind, k, head, opened_at, bytes_total, seq] =
        ["[applied]", "kind", "k", "head", "opened_at", "bytes_total", "seq"].map(place);
    let mut all = Vec::with_capacity(rows.rows_num());
    for row in rows.rows::<Row>().map_err(|_| Misshapen("untyped rows"))? {
        let mut row = row.map_err(|_| Misshapen("a broken row"))?;
        let mut take = |place: Option<usize>| place.and_then(|place| row.columns.get_mut(place)?.take());
        all.push(AnswerRow {
            applied: take(applied).and_then(|value| value.as_boolean()),
            kind: take(kind).and_then(|value| value.as_tinyint()),
            k: take(k).and_then(CqlValue::into_blob),
            head: take(head).and_then(|value| value.as_bigint()),
            opened_at: take(opened_at).and_then(|value| value.as_bigint()),
            bytes_total: take(bytes_total).and_then(|value| value.as_bigint()),
            seq: take(seq).and_then(|value| value.as_bigint()),
        });
    }
    Ok(all)
}
