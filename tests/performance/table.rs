//! The figures as they are printed.

use crate::rows::Row;
use crate::subject::Subject;

/// A line a row; with two subjects a second figure and the ratio.
pub(crate) struct Table;

impl Table {
    pub(crate) fn new(subjects: &[Subject], runs: usize) -> Table {
        for (name, subject) in ["measured", "against"].iter().zip(subjects) {
            println!("{name}: {}", subject.binary.display());
        }
        println!("{runs} samples a row, fewer where one takes long; one machine, nothing else known of it\n");
        println!("{:<58}{:>10}{:>10}{:>10}{:>12}{:>8}", "", "median", "p95", "p99", "against", "ratio");
        Table
    }

    pub(crate) fn measure(&mut self, row: &Row, subjects: &[Subject], runs: usize) {
        let mut samplers: Vec<_> = subjects.iter().map(|subject| (row.prepare)(subject)).collect();
        let mut samples = vec![Vec::new(); samplers.len()];
        for _ in 0..runs.min(row.most) {
            for (sample, samples) in samplers.iter_mut().zip(&mut samples) {
                samples.push(sample());
            }
        }
        let ours = Percentiles::of(&mut samples[0]);
        print!(
            "{:<58}{:>10}{:>10}{:>10}",
            format!("{}, {}", row.name, row.unit),
            figure(ours.p50),
            figure(ours.p95),
            figure(ours.p99)
        );
        if let Some(theirs) = samples.get_mut(1) {
            let theirs = Percentiles::of(theirs);
            print!("{:>12}{:>8.2}", figure(theirs.p50), ours.p50 / theirs.p50);
        }
        println!();
    }
}

struct Percentiles {
    p50: f64,
    p95: f64,
    p99: f64,
}

impl Percentiles {
    fn of(samples: &mut [f64]) -> Percentiles {
        samples.sort_by(f64::total_cmp);
        let at = |percent: usize| samples[(samples.len() * percent).div_ceil(100).saturating_sub(1)];
        Percentiles { p50: at(50), p95: at(95), p99: at(99) }
    }
}

/// Three digits that count.
fn figure(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
