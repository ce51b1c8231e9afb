//! An environment that somebody has asked for, and what it took to have it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbox_packages::SessionReport;
use sandbox_schemas::install::{InstallOutcome, InstallTiming, InstalledPackage};

use crate::environment::Environment;
use crate::template::Template;

/// An environment, and what it took to have it.
#[derive(Debug, Clone)]
pub(crate) struct Obtained {
    pub(crate) environment: Arc<Environment>,
    pub(crate) was_cached: bool,
    pub(crate) downloaded_bytes: u64,
    pub(crate) download_cache_bytes: u64,
}

impl Obtained {
    pub(crate) fn cached(environment: Arc<Environment>) -> Obtained {
        Obtained { environment, was_cached: true, downloaded_bytes: 0, download_cache_bytes: 0 }
    }

    pub(super) fn installed(environment: Arc<Environment>, report: &SessionReport) -> Obtained {
        Obtained {
            environment,
            was_cached: false,
            downloaded_bytes: report.downloaded_bytes,
            download_cache_bytes: report.cached_bytes,
        }
    }
}

impl Obtained {
    /// As the result of `install_packages`.
    pub(crate) fn outcome(&self, template: Option<&Template>, accepted: Instant, installed: Instant) -> InstallOutcome {
        let Environment { id, language, lock, requested, skipped, size_bytes, .. } = &*self.environment;
        let packages = lock.packages.iter().map(|package| InstalledPackage {
            requested: requested.contains(&package.name),
            name: package.name.clone(),
            version: package.version.clone(),
        });
        let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
        InstallOutcome {
            environment_id: id.to_string(),
            language: *language,
            packages: packages.collect(),
            cached: self.was_cached,
            downloaded_bytes: self.downloaded_bytes,
            download_cache_bytes: self.download_cache_bytes,
            size_bytes: *size_bytes,
            skipped: skipped.clone(),
            template: template.is_some(),
            not_imported: template.map_or(Vec::new(), |template| template.left_out.clone()),
            timing: InstallTiming {
                install_ms: milliseconds(installed - accepted),
                template_ms: milliseconds(installed.elapsed()),
                total_ms: milliseconds(accepted.elapsed()),
            },
        }
    }
}
