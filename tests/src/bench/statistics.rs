//! From samples to rows: medians with their spread, and ratios to the contenders that everything is compared with.
//!
//! A ratio is taken within one round, where both sides met the same machine, and the median is taken of the ratios: on
//! a machine that is busy with other things, ratios hold where figures do not.

use serde::Serialize;

/// One figure of one contender in one round.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) contender: &'static str,
    pub(super) path: &'static str,
    pub(super) measure: String,
    pub(super) unit: &'static str,
    pub(super) round: usize,
    pub(super) value: f64,
}

/// What all rounds say of one measure of one contender.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Who.
    pub contender: &'static str,
    /// `across` two nodes, or on the `same-node`.
    pub path: &'static str,
    /// What was measured.
    pub measure: String,
    /// Of the three figures.
    pub unit: &'static str,
    /// Over all rounds.
    pub median: f64,
    /// The smallest of all rounds.
    pub min: f64,
    /// The largest of all rounds.
    pub max: f64,
    /// Median of the rounds' ratios to [`DIRECT`] on the same path; `None` where that has no such figure.
    pub ratio_to_direct: Option<f64>,
    /// Median of the rounds' ratios to [`ENVOY`] on the same path; `None` where that has no such figure.
    pub ratio_to_envoy: Option<f64>,
}

impl Row {
    /// It is of a measure; `#` in its name stands for a number that was chosen for the run.
    pub(super) fn is_of(&self, measure: &str) -> bool {
        let Some((begin, end)) = measure.split_once('#') else { return self.measure == measure };
        let between = self.measure.strip_prefix(begin).and_then(|rest| rest.strip_suffix(end));
        between.is_some_and(|between| between.bytes().all(|byte| byte.is_ascii_digit()))
    }
}

/// One row per measure of a contender on a path, in the order in which they were first measured.
pub(super) fn rows(samples: &[Sample]) -> Vec<Row> {
    let mut firsts: Vec<&Sample> = Vec::new();
    for sample in samples {
        if !firsts.iter().any(|first| same_row(first, sample)) {
            firsts.push(sample);
        }
    }
    firsts.into_iter().map(|first| row(first, samples)).collect()
}

fn same_row(a: &Sample, b: &Sample) -> bool {
    (a.contender, a.path, &a.measure) == (b.contender, b.path, &b.measure)
}

fn row(first: &Sample, samples: &[Sample]) -> Row {
    let own: Vec<&Sample> = samples.iter().filter(|sample| same_row(first, sample)).collect();
    let values: Vec<f64> = own.iter().map(|sample| sample.value).collect();
    Row {
        contender: first.contender,
        path: first.path,
        measure: first.measure.clone(),
        unit: first.unit,
        median: median(values.clone()).expect("`first` is one of them"),
        min: values.iter().copied().fold(f64::INFINITY, f64::min),
        max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        ratio_to_direct: ratio(&own, samples, DIRECT),
        ratio_to_envoy: ratio(&own, samples, ENVOY),
    }
}

fn ratio(own: &[&Sample], samples: &[Sample], baseline: &str) -> Option<f64> {
    let of_its_round = |sample: &&Sample| {
        let base = samples.iter().find(|other| {
            other.contender == baseline
                && (other.path, other.round, &other.measure) == (sample.path, sample.round, &sample.measure)
        })?;
        (base.value != 0.0).then(|| sample.value / base.value)
    };
    median(own.iter().filter_map(of_its_round).collect())
}

/// The middle one, or the mean of the two in the middle; `None` of nothing.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().checked_sub(1)? / 2, values.len() / 2);
    Some(f64::midpoint(values[low], values[high]))
}

/// No engine in between.
pub(super) const DIRECT: &str = "direct";
/// Two Envoys as sidecars.
pub(super) const ENVOY: &str = "envoy-pair";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert_eq!(median(vec![9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(vec![9.0, 1.0, 5.0, 2.0]), Some(3.5));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn a_ratio_is_taken_within_its_round() {
        let rounds = [(10.0, 5.0), (100.0, 50.0), (20.0, 10.0)];
        let samples: Vec<Sample> = rounds
            .iter()
            .enumerate()
            .flat_map(|(round, (direct, other))| {
                [sample(DIRECT, "across", round, *direct), sample("other", "across", round, *other)]
            })
            .collect();
        let rows = rows(&samples);
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[1].median, rows[1].min, rows[1].max), (10.0, 5.0, 50.0));
        assert_eq!(rows[1].ratio_to_direct, Some(0.5));
        assert_eq!(rows[1].ratio_to_envoy, None);
    }

    #[test]
    fn a_baseline_of_another_path_or_of_a_lost_round_is_no_baseline() {
        let samples = [
            sample(DIRECT, "same-node", 0, 10.0),
            sample("other", "across", 0, 5.0),
            sample("other", "across", 1, 5.0),
        ];
        assert_eq!(rows(&samples)[1].ratio_to_direct, None);
        let samples = [samples[1].clone(), samples[2].clone(), sample(DIRECT, "across", 1, 20.0)];
        assert_eq!(rows(&samples)[0].ratio_to_direct, Some(0.25));
    }

    #[test]
    fn a_number_in_a_name_stands_for_any() {
        let row = |measure: &str| {
            rows(&[Sample { measure: measure.into(), ..sample("a", "across", 0, 1.0) }]).remove(0)
        };
        assert!(row("memory_1000_idle").is_of("memory_#_idle") && row("requests_1").is_of("requests_1"));
        assert!(
            !row("memory_per_1000_idle").is_of("memory_#_idle") && !row("requests_1_p50").is_of("requests_1")
        );
    }

    fn sample(contender: &'static str, path: &'static str, round: usize, value: f64) -> Sample {
        Sample { contender, path, measure: "requests_1".into(), unit: "req/s", round, value }
    }
}
