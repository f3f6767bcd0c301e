//! `run`: runs one command in a fresh root of an image.

mod options;
mod result;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, FromArgMatches as _};

use self::options::{LimitArgs, ProgramArgs};
use self::result::RunSubject;
use super::engine::{EngineChoice, PreparedImage};
use super::meta_file::MetaFile;
use super::{Context, STORED, candidates};
use crate::error::chain_text;
use crate::pipeline::read_image;
use crate::roots::{InodeWidth, Upper};
use crate::sandbox::isolate::{DirRule, failure_text};
use crate::sandbox::{
    FileCopy, FinishedRun, RunRequest, RunSpec, RunStatus, Sandbox, SandboxKind, run as run_job,
};

/// Exit code if the program failed. isolate uses the same code.
const EXIT_PROGRAM: u8 = 1;

/// The hint for programs that may not fork.
const SINGLE_PROCESS: &str =
    "the program could start no other processes or threads: if it failed because of that, use `--processes`";

const EXAMPLES: &str = "\
Examples:
  Run a command under isolate, with limits:
    rcx-imagefs run --sandbox isolate --cg --cg-mem 262144 --time 2 python:3.12 -- python3 -c 'print(1)'
  Compile a file of this directory, and copy the program out:
    rcx-imagefs run --copy-in hello.c --copy-out hello --processes=10 gcc:13 -- gcc -o hello hello.c
  Print the result as JSON:
    rcx-imagefs run --json --sandbox bwrap python:3.12 -- python3 --version";

/// Run a command in a fresh root of an image, under isolate or bubblewrap
///
/// The command starts in the image's working directory, or in /box if the image has none; /box is the only directory of the
/// host in the sandbox, unless --dir binds others. The command is looked up in the PATH of the image. Everything it writes is
/// removed after the run, except the files that --copy-out copies.
///
/// Options that isolate also has mean the same as in isolate. Exits with 0 if the program did, with 1 if the program failed or
/// exceeded a limit, with 2 if it could not be run, and with 128+N if signal N ended `run` itself.
#[derive(Debug, Args)]
#[command(next_line_help = false, after_long_help = EXAMPLES)]
pub(super) struct RunArgs {
    /// The image.
    #[arg(help = STORED, add = candidates::images(), value_name = "REF")]
    reference: String,
    /// Command to run, instead of the image's. Everything after its first word belongs to it
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Sandbox: auto, isolate, or bwrap, which enforces no limits [default: auto]
    #[arg(long, value_name = "SANDBOX")]
    sandbox: Option<SandboxKind>,
    /// How the root accesses the image's files [default: erofs if possible, otherwise fuse]
    #[arg(long)]
    engine: Option<EngineChoice>,
    /// Where writes go: dir, dir:SIZE, tmpfs:SIZE or none [default: dir]
    #[arg(long, value_name = "UPPER")]
    upper: Option<Upper>,
    /// Inode numbers: 64bit, or 32bit for programs without large-file support [default: 64bit]
    #[arg(long, value_name = "WIDTH")]
    inodes: Option<InodeWidth>,
    /// Add nothing to the image: no lines for the user and localhost in /etc, no HOME
    #[arg(long)]
    no_inject: bool,
    /// Program to start, instead of the image's entrypoint; empty for none
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<OsString>,
    /// Copy a file or directory into the box before the run
    #[arg(long, value_name = "HOST[=NAME]")]
    copy_in: Vec<OsString>,
    /// Copy a file or directory out of the box after the run
    #[arg(long, value_name = "NAME[=HOST]")]
    copy_out: Vec<OsString>,
    /// Print the result as JSON on stdout; the program's stdout goes to stderr, unless --stdout is given
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    program: ProgramArgs,
}

impl RunArgs {
    /// Returns what may help a program that failed.
    ///
    /// A program whose fork(2) fails with EAGAIN usually ends with an error of its own, which this process cannot tell apart.
    fn hint(&self, terminal: bool, subject: &RunSubject, status: RunStatus) -> Option<&'static str> {
        let has_failed = matches!(status, RunStatus::RuntimeError | RunStatus::Signal);
        let is_single = subject.sandbox == Some("isolate") && self.limits.processes.is_none() && !terminal;
        (has_failed && is_single).then_some(SINGLE_PROCESS)
    }

    fn spec(&self, context: &Context, terminal: bool) -> anyhow::Result<RunSpec> {
        let program = &self.program;
        let upper = context.config.upper(self.upper)?;
        let rules = program.dir.iter().map(|text| Ok(DirRule::parse(text)?));
        Ok(RunSpec {
            options: program.isolate_options(&self.limits, program.silent || self.json),
            env: program.env.clone(),
            dirs: rules.collect::<anyhow::Result<_>>()?,
            chdir: program.chdir.clone(),
            box_id: program.box_id,
            upper,
            entrypoint: self.entrypoint.clone(),
            command: self.command.clone(),
            copy_in: self.copy_in.iter().map(|text| FileCopy::into_box(text)).collect::<Result<_, _>>()?,
            copy_out: self
                .copy_out
                .iter()
                .map(|text| FileCopy::out_of_box(text))
                .collect::<Result<_, _>>()?,
            wait: program.wait(),
            terminal,
            no_inject: self.no_inject,
            stdout_to_stderr: self.json && program.stdout.is_none(),
        })
    }
}

pub(super) fn run(context: &Context, args: &RunArgs) -> anyhow::Result<ExitCode> {
    // Open the meta file before the program runs, so that its result can be written afterwards.
    let mut meta = args.program.meta.as_deref().map(MetaFile::open).transpose()?;
    let mut subject = RunSubject::default();
    let terminal = args.program.terminal(args.json);
    match execute(context, args, None, terminal, &mut subject) {
        Ok(FinishedRun { report, errors }) => {
            if let Some(meta) = &mut meta {
                meta.write(&report.meta)?;
            }
            let hint = args.hint(terminal, &subject, report.verdict.status);
            subject.print(args.json, args.program.silent, &report, hint, &errors)?;
            let mut errors = errors.into_iter();
            match (errors.next(), report.verdict.status) {
                (Some(first), _) => {
                    for further in errors {
                        tracing::warn!("{}", chain_text(&further));
                    }
                    Err(first.into())
                }
                (None, RunStatus::Ok) => Ok(ExitCode::SUCCESS),
                (None, _) => Ok(ExitCode::from(EXIT_PROGRAM)),
            }
        }
        Err(failure) => {
            let message = format!("{failure:#}");
            if let Some(meta) = &mut meta {
                meta.write(failure_text(&message).as_bytes())?;
            }
            if args.json {
                subject.print_failure(&failure, message)?;
            }
            Err(failure)
        }
    }
}

/// Runs a command for what it reads: with the engine erofs, any number of processes and no limits.
pub(super) fn run_for_reads(
    context: &Context,
    reference: &str,
    command: &[OsString],
) -> anyhow::Result<FinishedRun> {
    let kind = context.config.run.sandbox()?;
    let sandbox = Sandbox::find(kind, context.config.isolate.path.as_deref(), &context.run_dir)?;
    // isolate allows one process unless it is told otherwise; bubblewrap has no such limit.
    let processes = (sandbox.name() == "isolate").then_some("--processes");
    let options = ["run", "--json", "--engine=erofs"].into_iter().chain(processes).chain(["--", reference]);
    let words = options.map(OsString::from).chain(command.iter().cloned());
    let matches = RunArgs::augment_args(clap::Command::new("run")).try_get_matches_from(words)?;
    let args = RunArgs::from_arg_matches(&matches)?;
    execute(context, &args, Some(sandbox), false, &mut RunSubject::default())
}

/// Runs a command, in a sandbox that the caller has found or in the one that the options name.
fn execute(
    context: &Context,
    args: &RunArgs,
    sandbox: Option<Sandbox>,
    terminal: bool,
    subject: &mut RunSubject,
) -> anyhow::Result<FinishedRun> {
    let spec = args.spec(context, terminal)?;
    let config = &context.config.run;
    let store = context.open_store()?;
    let found = context.find(&store, &args.reference)?;
    subject.image = Some(format!("{}@{}", context.familiar(&found.image.name), found.image.digest));
    let image = read_image(&store, &found.image.digest)?;
    let sandbox = match sandbox {
        Some(sandbox) => sandbox,
        None => {
            let kind = args.sandbox.map_or_else(|| config.sandbox(), Ok)?;
            Sandbox::find(kind, context.config.isolate.path.as_deref(), &context.run_dir)?
        }
    };
    subject.sandbox = Some(sandbox.name());
    if let (Sandbox::Bwrap(_), false) = (&sandbox, args.program.silent) {
        eprintln!("note: bubblewrap isolates the program, but enforces no limits");
    }
    let name = subject.image.as_deref().unwrap_or_default();
    let PreparedImage { lower, account } =
        context.with_engine(args.engine, |engine| context.prepare(&store, &image, name, engine))?;
    let job = RunRequest {
        spec: &spec,
        config: image.config(),
        image: &lower,
        account: account.as_ref(),
        roots: &context.roots(&store)?.with_inodes(context.config.inodes(args.inodes)?),
        boxes: &context.boxes(&store)?,
        range: config.box_ids()?,
        sandbox: &sandbox,
        user: config.bwrap_user()?,
        image_user: config.bwrap_image_user,
    };
    Ok(run_job(&job)?)
}
