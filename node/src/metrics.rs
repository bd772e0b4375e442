//! Makes metrics. **Invariant:** what is made is registered, once, under the prefix of its family.

use prometheus::core::Collector;
use prometheus::{
    CounterVec, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, exponential_buckets,
};

/// Makes metrics and registers them, all under one prefix.
pub struct Family<'a> {
    /// Where they are registered.
    pub registry: &'a Registry,
    /// First part of every name.
    pub prefix: &'static str,
}

impl Family<'_> {
    fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(format!("{}_{name}", self.prefix), help)
    }

    fn register<M: Collector + Clone + 'static>(&self, metric: M) -> Result<M, prometheus::Error> {
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    /// A counter. Fails, as all of these do, if the registry has the name already.
    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.register(IntCounter::with_opts(self.opts(name, help))?)
    }

    /// A gauge of whole numbers.
    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.register(IntGauge::with_opts(self.opts(name, help))?)
    }

    /// A gauge.
    pub fn real_gauge(&self, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
        self.register(Gauge::with_opts(self.opts(name, help))?)
    }

    /// Counters by labels.
    pub fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        self.register(IntCounterVec::new(self.opts(name, help), labels)?)
    }

    /// Gauges of whole numbers by labels.
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
        self.register(IntGaugeVec::new(self.opts(name, help), labels)?)
    }

    /// Sums by labels, of what is not whole.
    pub fn sums(&self, name: &str, help: &str, labels: &[&str]) -> Result<CounterVec, prometheus::Error> {
        self.register(CounterVec::new(self.opts(name, help), labels)?)
    }

    /// `count` buckets, the first up to `start`, each `factor` times as wide as the one before.
    pub fn histogram(
        &self,
        name: &str,
        help: &str,
        (start, factor, count): (f64, f64, usize),
    ) -> Result<Histogram, prometheus::Error> {
        let buckets = exponential_buckets(start, factor, count)?;
        self.register(Histogram::with_opts(HistogramOpts { common_opts: self.opts(name, help), buckets })?)
    }

    /// Histograms by labels, with the buckets of [`Family::histogram`].
    pub fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        (start, factor, count): (f64, f64, usize),
    ) -> Result<HistogramVec, prometheus::Error> {
        self.histograms_in(name, help, labels, &exponential_buckets(start, factor, count)?)
    }

    /// Histograms by labels, with these upper bounds of buckets, growing.
    pub fn histograms_in(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> Result<HistogramVec, prometheus::Error> {
        let opts = HistogramOpts { common_opts: self.opts(name, help), buckets: buckets.to_vec() };
        self.register(HistogramVec::new(opts, labels)?)
    }
}
