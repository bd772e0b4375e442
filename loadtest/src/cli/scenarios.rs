//! `loadtest scenarios` and `loadtest compare`.

use super::wrong_use;
use crate::report::{Report, compare};
use crate::scenario::{Scenario, library};
use crate::thresholds::NAMES;
use anyhow::{Context, Result};
use clap::Args;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(super) struct ScenariosArgs {
    /// Print this one's file: to read, or to make one of your own of it
    name: Option<String>,
    /// Print what a threshold can be about
    #[arg(long, conflicts_with = "name")]
    figures: bool,
}

impl ScenariosArgs {
    pub(super) fn run(self) -> Result<ExitCode> {
        if self.figures {
            for (name, unit, about) in NAMES {
                println!("{name:<18} {:<10} {about}", format!("{unit:?}").to_lowercase());
            }
            println!(
                "\nLatencies have .p50, .p90, .p99, .p999 and .max behind their name: deliver.p99<250ms"
            );
        } else if let Some(name) = &self.name {
            match library::find(name) {
                Some(ready) => print!("{}", ready.text),
                None => return Ok(wrong_use(&Scenario::find(name).err().unwrap_or_default())),
            }
        } else {
            for ready in library::ALL {
                let scenario = Scenario::read(ready.text).map_err(anyhow::Error::msg)?;
                println!("{:<14} {}", ready.name, scenario.about);
            }
            println!(
                "\nRun one: loadtest run NAME … · read one: loadtest scenarios NAME · your own: loadtest run FILE.toml …"
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 no difference seen, or a better one; 3 something takes longer or more than before; 2 they cannot be compared."
)]
pub(super) struct CompareArgs {
    /// The new report (--json of a run)
    new: PathBuf,
    /// The old one
    old: PathBuf,
}

impl CompareArgs {
    pub(super) fn run(self) -> Result<ExitCode> {
        let (new, old) = (read(&self.new)?, read(&self.old)?);
        let ratios = compare::compare(&new, &old).map_err(anyhow::Error::msg)?;
        print!("{}", compare::text(&ratios));
        let worse = ratios.iter().any(|ratio| ratio.low > 1.0);
        Ok(if worse { ExitCode::from(crate::report::EXIT_THRESHOLD) } else { ExitCode::SUCCESS })
    }
}

/// A report of an earlier run.
pub(super) fn read(path: &Path) -> Result<Report> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is no report of this version of the harness", path.display()))
}
