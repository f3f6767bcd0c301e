//! `env log`: prints the changes of the queue.

use clap::Args;

use crate::cli::{output, time};
use crate::environments::Queue;

const EXAMPLES: &str = "\
Examples:
  Print who approved what:
    rcx-imagefs env log | grep approved";

/// Print all changes of the queue, oldest first
///
/// The log has one line for each change, with who made it and when, and is only ever appended to.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct LogArgs {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(queue: &Queue, args: &LogArgs) -> anyhow::Result<()> {
    let entries = queue.log()?;
    if args.json {
        return output::json(&entries);
    }
    for entry in entries {
        let time = time::short(entry.by.when.as_second());
        let message = entry.by.message.map(|message| format!(": {message}")).unwrap_or_default();
        let (what, who) = (entry.what.as_str(), entry.by.who);
        output::line(format!(
            "{time}  {what:<9}  {}@{} by {who}{message}",
            entry.environment, entry.revision
        ))?;
    }
    Ok(())
}
