//! `env show`: prints a revision for its review.

use std::str::FromStr;

use clap::Args;
use serde::Serialize;
use similar::TextDiff;

use super::RevisionJson;
use crate::cli::{Context, output, time};
use crate::environments::{
    Attribution, DOCKERFILE, Environment, EnvironmentId, EnvironmentNameError, Queue, ReviewFlag, Revision,
    RevisionId, is_hidden,
};

/// Lines around a difference, as in diff(1).
const AROUND: usize = 3;

const EXAMPLES: &str = "\
Examples:
  Print a revision with its Dockerfile, and what to look at:
    rcx-imagefs env show python3@2
  Print what the newest revision changes in the Dockerfile:
    rcx-imagefs env show python3 --diff";

/// Print a revision for its review
///
/// Prints what the author asks for, the Dockerfile with the numbers of its lines, and flags: lines that reach out of the build or that hide something. Characters that
/// cannot be seen are escaped.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct ShowArgs {
    /// Environment, for its newest revision, or a revision
    #[arg(value_name = "ID[@REVISION]")]
    revision: ShownRevision,
    /// Print the difference to the Dockerfile of the last published revision instead of the whole file
    #[arg(long)]
    diff: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// An environment, or one of its revisions.
#[derive(Debug, Clone)]
enum ShownRevision {
    Newest(EnvironmentId),
    Revision(RevisionId),
}

impl FromStr for ShownRevision {
    type Err = EnvironmentNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.contains('@') {
            true => text.parse().map(Self::Revision),
            false => text.parse().map(Self::Newest),
        }
    }
}

#[derive(Debug, Serialize)]
struct ShownJson<'a> {
    #[serde(flatten)]
    revision: RevisionJson<'a>,
    dockerfile: &'a str,
    flags: &'a [ReviewFlag],
    /// The published revision that `diff` compares with.
    last_published: Option<u32>,
    /// The difference of the Dockerfiles, with `--diff`.
    diff: Option<String>,
}

pub(super) fn run(context: &Context, queue: &Queue, args: &ShowArgs) -> anyhow::Result<()> {
    let (environment, revision) = find(queue, &args.revision)?;
    let dockerfile = revision.dockerfile()?;
    let flags = ReviewFlag::find(&dockerfile, &revision.submission.context, &super::policy(context)?);
    let last = environment.last_published(&revision);
    let diff = match args.diff {
        true => Some(difference(last, &revision, dockerfile.text())?),
        false => None,
    };
    if args.json {
        return output::json(&ShownJson {
            revision: RevisionJson::new(&environment, &revision),
            dockerfile: dockerfile.text(),
            flags: &flags,
            last_published: last.map(|last| last.id.number.get()),
            diff,
        });
    }
    fields(&environment, &revision)?;
    output::line("")?;
    for flag in &flags {
        let line = flag.line.map_or_else(|| "context".to_owned(), |line| format!("line {line}"));
        output::line(format!("flag: {line}: {}: {}", flag.kind.as_str(), visible(&flag.message)))?;
    }
    if !flags.is_empty() {
        output::line("")?;
    }
    match diff {
        Some(diff) => output::bytes(visible(&diff).as_bytes()),
        None => {
            let numbered = dockerfile.text().lines().zip(1..);
            let text: String =
                numbered.map(|(line, number)| format!("{number:4}  {}\n", visible(line))).collect();
            output::bytes(text.as_bytes())
        }
    }
}

fn find(queue: &Queue, shown: &ShownRevision) -> anyhow::Result<(Environment, Revision)> {
    let (id, revision) = match shown {
        ShownRevision::Newest(id) => (id, None),
        ShownRevision::Revision(revision) => (&revision.environment, Some(queue.revision(revision)?)),
    };
    let mut environment = queue.environment(id)?;
    let revision = match revision.or_else(|| environment.revisions.last().cloned()) {
        Some(revision) => revision,
        // All are damaged.
        None => return Err(environment.damaged.swap_remove(0).into()),
    };
    Ok((environment, revision))
}

/// The unified difference of two Dockerfiles. A first revision is compared with nothing.
fn difference(last: Option<&Revision>, revision: &Revision, text: &str) -> anyhow::Result<String> {
    let (before, name) = match last {
        Some(last) => (last.dockerfile()?.text().to_owned(), format!("{}/{DOCKERFILE}", last.id)),
        None => (String::new(), "/dev/null".to_owned()),
    };
    let diff = TextDiff::from_lines(before.as_str(), text);
    let name_now = format!("{}/{DOCKERFILE}", revision.id);
    Ok(diff.unified_diff().context_radius(AROUND).header(&name, &name_now).to_string())
}

/// Prints what is known about a revision, besides its Dockerfile.
fn fields(environment: &Environment, revision: &Revision) -> anyhow::Result<()> {
    let submission = &revision.submission;
    let field = |name: &str, value: &str| output::line(format!("{name:<10} {value}"));
    let by = |by: &Attribution| {
        let message = by.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
        format!("by {} at {}{message}", by.who, time::short(by.when.as_second()))
    };
    let json = RevisionJson::new(environment, revision);
    let current = if json.current { ", current" } else { "" };
    field("revision", &format!("{} ({}{current})", revision.id, json.state))?;
    field("submitted", &by(&submission.by))?;
    if let Some(review) = &revision.review {
        field("review", &by(&review.by))?;
    }
    if let Some(result) = &revision.result {
        field("result", &by(&result.by))?;
    }
    let context = &submission.context;
    let entries = output::count(context.entries, "file", "files");
    field("context", &format!("{} in {entries}, {}", output::size(context.size), context.digest))?;
    field("", &revision.context_path().display().to_string())?;
    field("platform", &submission.platform.to_string())?;
    if let Some(smoke) = &submission.smoke {
        field("smoke", smoke)?;
    }
    let hosts: Vec<String> = submission.hosts.iter().map(ToString::to_string).collect();
    field("hosts", &if hosts.is_empty() { "none".to_owned() } else { hosts.join(", ") })?;
    let groups: Vec<String> = submission.hwgroups.iter().map(ToString::to_string).collect();
    field("hwgroups", &if groups.is_empty() { "all".to_owned() } else { groups.join(", ") })?;
    for base in revision.review.iter().flat_map(|review| &review.bases) {
        field("base", &format!("{} = {}", base.name, base.digest))?;
    }
    if let Some(image) = revision.result.as_ref().and_then(|result| result.image.as_ref()) {
        field("image", image)?;
    }
    Ok(())
}

/// Escapes characters that a terminal does not show or that change how it shows others. Tabs and line ends stay.
fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for character in text.chars() {
        match character != '\n' && is_hidden(character) {
            true => visible.extend(character.escape_unicode()),
            false => visible.push(character),
        }
    }
    visible
}
