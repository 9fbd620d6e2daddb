//! The page of a scrape: families of one kind and unit, each with its label sets.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::metrics::cell::Spread;

/// The page that is being written.
pub(super) struct Page<'e>(pub(super) DescriptorEncoder<'e>);

/// One metric with its label sets.
pub(super) struct Family<'f, 'e> {
    encoder: &'f mut MetricEncoder<'e>,
    is_counter: bool,
}

impl Page<'_> {
    pub(super) fn counters(
        &mut self,
        name: &str,
        help: &str,
        write: impl FnOnce(&mut Family<'_, '_>) -> fmt::Result,
    ) -> fmt::Result {
        self.family(name, help, None, MetricType::Counter, write)
    }

    pub(super) fn counters_in(
        &mut self,
        name: &str,
        help: &str,
        unit: &Unit,
        write: impl FnOnce(&mut Family<'_, '_>) -> fmt::Result,
    ) -> fmt::Result {
        self.family(name, help, Some(unit), MetricType::Counter, write)
    }

    pub(super) fn gauges(
        &mut self,
        name: &str,
        help: &str,
        write: impl FnOnce(&mut Family<'_, '_>) -> fmt::Result,
    ) -> fmt::Result {
        self.family(name, help, None, MetricType::Gauge, write)
    }

    pub(super) fn numbers(
        &mut self,
        name: &str,
        help: &str,
        unit: &Unit,
        write: impl FnOnce(&mut Family<'_, '_>) -> fmt::Result,
    ) -> fmt::Result {
        self.family(name, help, Some(unit), MetricType::Gauge, write)
    }

    pub(super) fn histograms(
        &mut self,
        name: &str,
        help: &str,
        write: impl FnOnce(&mut Family<'_, '_>) -> fmt::Result,
    ) -> fmt::Result {
        self.family(name, help, Some(&Unit::Seconds), MetricType::Histogram, write)
    }

    pub(super) fn family(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        kind: MetricType,
        write: impl FnOnce(&mut Family<'_, '_>) -> fmt::Result,
    ) -> fmt::Result {
        let is_counter = matches!(kind, MetricType::Counter);
        let mut encoder = self.0.encode_descriptor(name, help, unit, kind)?;
        write(&mut Family { encoder: &mut encoder, is_counter })
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        encoder.encode_counter::<NoLabelSet, _, f64>(&value, None)
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    pub(super) fn number(&mut self, name: &str, help: &str, unit: &Unit, value: f64) -> fmt::Result {
        self.0.encode_descriptor(name, help, Some(unit), MetricType::Gauge)?.encode_gauge(&value)
    }

    pub(super) fn histogram(&mut self, name: &str, help: &str, spread: &Spread) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        encoder.encode_histogram::<NoLabelSet>(spread.seconds(), spread.count(), &spread.buckets(), None)
    }
}

/// What a value can be: a count or a spread.
pub(super) trait Amount {
    fn write(&self, encoder: &mut MetricEncoder<'_>, is_counter: bool) -> fmt::Result;
}

impl Amount for u64 {
    fn write(&self, encoder: &mut MetricEncoder<'_>, is_counter: bool) -> fmt::Result {
        if is_counter { encoder.encode_counter::<NoLabelSet, _, f64>(self, None) } else { encoder.encode_gauge(self) }
    }
}

impl Amount for &Spread {
    fn write(&self, encoder: &mut MetricEncoder<'_>, _: bool) -> fmt::Result {
        encoder.encode_histogram::<NoLabelSet>(self.seconds(), self.count(), &self.buckets(), None)
    }
}

impl Family<'_, '_> {
    pub(super) fn add<const N: usize>(&mut self, labels: &[(&str, &str); N], amount: impl Amount) -> fmt::Result
    where
        for<'l> [(&'l str, &'l str); N]: EncodeLabelSet,
    {
        amount.write(&mut self.encoder.encode_family(labels)?, self.is_counter)
    }

    pub(super) fn add_number<const N: usize>(&mut self, labels: &[(&str, &str); N], number: f64) -> fmt::Result
    where
        for<'l> [(&'l str, &'l str); N]: EncodeLabelSet,
    {
        self.encoder.encode_family(labels)?.encode_gauge(&number)
    }
}
