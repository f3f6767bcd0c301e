//! `run`: runs one command in a fresh root of an image.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::engine::EngineChoice;
use super::error::{ErrorJson, interrupted_by};
use super::meta_file::MetaFile;
use super::{Context, STORED, candidates, output};
use crate::error::chain_text;
use crate::pipeline::read_image;
use crate::roots::{InodeWidth, Upper};
use crate::sandbox::isolate::{DirRule, GivenOption, IsolateOption, failure_text};
use crate::sandbox::{
    FileCopy, FinishedRun, RunReport, RunRequest, RunSpec, RunStatus, Sandbox, SandboxError, SandboxKind,
    Verdict, run as run_job,
};

/// Exit code if the program failed. isolate uses the same code.
const EXIT_PROGRAM: u8 = 1;

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
    /// Command to run, instead of the image's
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Sandbox: auto, isolate, or bwrap, which enforces no limits [default: auto]
    #[arg(long, value_name = "SANDBOX")]
    sandbox: Option<SandboxKind>,
    /// How the root accesses the image's files [default: fuse]
    #[arg(long)]
    engine: Option<EngineChoice>,
    /// Where writes go: dir, dir:SIZE, tmpfs:SIZE or none [default: dir]
    #[arg(long, value_name = "UPPER")]
    upper: Option<Upper>,
    /// Inode numbers: 64bit, or 32bit for programs without large-file support [default: 64bit]
    #[arg(long, value_name = "WIDTH")]
    inodes: Option<InodeWidth>,
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

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits (isolate)")]
struct LimitArgs {
    /// Processor time, in seconds
    #[arg(long, value_name = "SECONDS")]
    time: Option<Seconds>,
    /// Wall-clock time, in seconds
    #[arg(long, value_name = "SECONDS")]
    wall_time: Option<Seconds>,
    /// Seconds by which --time may be exceeded before the program is killed
    #[arg(long, value_name = "SECONDS")]
    extra_time: Option<Seconds>,
    /// Address space of each process, in KiB
    #[arg(long, value_name = "KIB")]
    mem: Option<IsolateNumber>,
    /// Use control groups
    #[arg(long)]
    cg: bool,
    /// Memory of all processes together, in KiB; needs --cg
    #[arg(long, value_name = "KIB")]
    cg_mem: Option<IsolateNumber>,
    /// Processes and threads; without N, any number [default: 1]
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true)]
    processes: Option<Option<IsolateNumber>>,
    /// Stack of each process, in KiB
    #[arg(long, value_name = "KIB")]
    stack: Option<IsolateNumber>,
    /// Size of files that the program writes, in KiB
    #[arg(long, value_name = "KIB")]
    fsize: Option<IsolateNumber>,
    /// Size of core files, in KiB [default: 0]
    #[arg(long, value_name = "KIB")]
    core: Option<IsolateNumber>,
    /// Open files of each process; 0 for any number
    #[arg(long, value_name = "N")]
    open_files: Option<IsolateNumber>,
    /// Disk quota of the box
    #[arg(long, value_name = "BLOCKS,INODES")]
    quota: Option<BoxQuota>,
    /// System calls to block, as a bit mask; needs isolate 2.4 or newer
    #[arg(long, value_name = "FLAGS")]
    syscalls: Option<IsolateNumber>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Program")]
struct ProgramArgs {
    /// File in the sandbox that is the program's standard input
    #[arg(long, value_name = "FILE")]
    stdin: Option<OsString>,
    /// File in the sandbox that receives the program's standard output
    #[arg(long, value_name = "FILE")]
    stdout: Option<OsString>,
    /// File in the sandbox that receives the program's standard error
    #[arg(long, value_name = "FILE", conflicts_with = "stderr_to_stdout")]
    stderr: Option<OsString>,
    /// Redirect standard error to standard output
    #[arg(long)]
    stderr_to_stdout: bool,
    /// Set a variable, overriding the image's; without VALUE, inherit it from the caller's environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Pass all variables of the caller's environment
    #[arg(long)]
    full_env: bool,
    /// Working directory, in the sandbox
    #[arg(long, value_name = "DIR")]
    chdir: Option<PathBuf>,
    /// Bind a directory of the host, in isolate's syntax: IN=OUT[:rw:noexec:maybe:..]
    #[arg(long, value_name = "RULE")]
    dir: Vec<OsString>,
    /// Share the host's network
    #[arg(long)]
    share_net: bool,
    /// Let the program control the terminal; see isolate(1)
    #[arg(long)]
    tty_hack: bool,
    /// Keep special files in the box; needs isolate 1.10 or newer
    #[arg(long)]
    special_files: bool,
    /// Do not print how the program ended
    #[arg(short, long)]
    silent: bool,
    /// File for the result, in isolate's format; `-` is stdout
    #[arg(long, value_name = "FILE")]
    meta: Option<PathBuf>,
    /// Box to use [default: a free box from `box-ids` in the configuration]
    #[arg(long, value_name = "N")]
    box_id: Option<u32>,
}

/// A number as isolate accepts it: from 0 to 2^31 - 1.
#[derive(Debug, Clone, Copy)]
struct IsolateNumber(u32);

impl std::str::FromStr for IsolateNumber {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<u32>() {
            Ok(number) if i32::try_from(number).is_ok() => Ok(Self(number)),
            _ => Err("expected a whole number below 2^31".to_owned()),
        }
    }
}

/// Seconds as the user writes them, with fractions. Checked here, because isolate silently ignores text after a number.
#[derive(Debug, Clone)]
struct Seconds(String);

impl std::str::FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        match text.parse::<f64>() {
            // isolate counts milliseconds in a 32-bit int.
            Ok(seconds) if plain && seconds < 2_000_000.0 => Ok(Self(text.to_owned())),
            _ => Err("expected a number of seconds, such as 1.5".to_owned()),
        }
    }
}

/// Two numbers, separated by a comma.
#[derive(Debug, Clone)]
struct BoxQuota(String);

impl std::str::FromStr for BoxQuota {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let halves = text
            .split_once(',')
            .map(|(blocks, inodes)| (blocks.parse::<IsolateNumber>(), inodes.parse::<IsolateNumber>()));
        match halves {
            Some((Ok(_), Ok(_))) => Ok(Self(text.to_owned())),
            _ => Err("expected two numbers, such as 10240,100".to_owned()),
        }
    }
}

impl RunArgs {
    /// Returns the options that are passed to isolate unchanged.
    fn options(&self) -> Vec<GivenOption> {
        let (limits, program) = (&self.limits, &self.program);
        let number = |option, value: Option<IsolateNumber>| {
            (option, value.map(|IsolateNumber(number)| number.to_string().into()))
        };
        let seconds =
            |option, value: &Option<Seconds>| (option, value.as_ref().map(|Seconds(text)| text.into()));
        let quota = limits.quota.as_ref().map(|BoxQuota(text)| text.into());
        let valued: [(IsolateOption, Option<OsString>); 14] = [
            seconds(IsolateOption::Time, &limits.time),
            seconds(IsolateOption::WallTime, &limits.wall_time),
            seconds(IsolateOption::ExtraTime, &limits.extra_time),
            number(IsolateOption::Mem, limits.mem),
            number(IsolateOption::CgMem, limits.cg_mem),
            number(IsolateOption::Stack, limits.stack),
            number(IsolateOption::Fsize, limits.fsize),
            number(IsolateOption::Core, limits.core),
            number(IsolateOption::OpenFiles, limits.open_files),
            (IsolateOption::Quota, quota),
            number(IsolateOption::Syscalls, limits.syscalls),
            (IsolateOption::Stdin, program.stdin.clone()),
            (IsolateOption::Stdout, program.stdout.clone()),
            (IsolateOption::Stderr, program.stderr.clone()),
        ];
        let bare = [
            (IsolateOption::Cg, limits.cg),
            (IsolateOption::StderrToStdout, program.stderr_to_stdout),
            (IsolateOption::FullEnv, program.full_env),
            (IsolateOption::ShareNet, program.share_net),
            (IsolateOption::TtyHack, program.tty_hack),
            (IsolateOption::SpecialFiles, program.special_files),
            (IsolateOption::Silent, program.silent || self.json),
        ];
        let valued = valued
            .into_iter()
            .filter_map(|(option, value)| Some(GivenOption { option, value: Some(value?) }));
        let bare = bare
            .into_iter()
            .filter(|(_, is_set)| *is_set)
            .map(|(option, _)| GivenOption { option, value: None });
        let processes = limits.processes.map(|count| GivenOption {
            option: IsolateOption::Processes,
            value: count.map(|IsolateNumber(count)| count.to_string().into()),
        });
        valued.chain(bare).chain(processes).collect()
    }

    fn spec(&self, context: &Context) -> anyhow::Result<RunSpec> {
        let program = &self.program;
        let upper = context.config.upper(self.upper)?;
        let rules = program.dir.iter().map(|text| Ok(DirRule::parse(text)?));
        Ok(RunSpec {
            options: self.options(),
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
            stdout_to_stderr: self.json && program.stdout.is_none(),
        })
    }
}

/// The output of `run --json`.
#[derive(Debug, Serialize)]
struct RunJson<'a> {
    #[serde(flatten)]
    verdict: &'a Verdict,
    sandbox: Option<&'static str>,
    image: Option<&'a str>,
    box_id: Option<u32>,
    /// Whether a signal to this program ended the run.
    interrupted: bool,
    /// Errors after the program ended, for example of --copy-out.
    errors: Vec<String>,
    /// The code of the error if the run failed, otherwise the code of the first of `errors`.
    code: Option<&'static str>,
}

/// The sandbox and the image of a run, as soon as they are known.
#[derive(Debug, Default)]
struct RunSubject {
    sandbox: Option<&'static str>,
    image: Option<String>,
}

pub(super) fn run(context: &Context, args: &RunArgs) -> anyhow::Result<ExitCode> {
    // Open the meta file before the program runs, so that its result can be written afterwards.
    let mut meta = args.program.meta.as_deref().map(MetaFile::open).transpose()?;
    let mut subject = RunSubject::default();
    match execute(context, args, &mut subject) {
        Ok(FinishedRun { report, errors }) => {
            if let Some(meta) = &mut meta {
                meta.write(&report.meta)?;
            }
            print_result(args, &subject, &report, &errors)?;
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
                output::json(&RunJson {
                    verdict: &Verdict::internal(message),
                    sandbox: subject.sandbox,
                    image: subject.image.as_deref(),
                    box_id: None,
                    interrupted: interrupted_by(&failure).is_some(),
                    errors: Vec::new(),
                    code: Some(ErrorJson::new(&failure).code),
                })?;
            }
            Err(failure)
        }
    }
}

fn execute(context: &Context, args: &RunArgs, subject: &mut RunSubject) -> anyhow::Result<FinishedRun> {
    let spec = args.spec(context)?;
    let config = &context.config.run;
    let store = context.open_store()?;
    let found = context.find(&store, &args.reference)?;
    subject.image = Some(format!("{}@{}", context.familiar(&found.image.name), found.image.digest));
    let image = read_image(&store, &found.image.digest)?;
    let kind = args.sandbox.map_or_else(|| config.sandbox(), Ok)?;
    let sandbox = Sandbox::find(kind, context.config.isolate.path.as_deref(), &context.run_dir)?;
    subject.sandbox = Some(sandbox.name());
    if let (Sandbox::Bwrap(_), false) = (&sandbox, args.program.silent) {
        eprintln!("note: bubblewrap isolates the program, but enforces no limits");
    }
    let engine = context.engine(&store, args.engine)?;
    let account = context.account(&store, engine, &image, subject.image.as_deref().unwrap_or_default())?;
    let lower = context.lower(&store, &args.reference, engine).map_err(|error| match &account {
        Some((account, image)) => account
            .failed_reads(std::process::id(), image)
            .map_or(error, |fault| SandboxError::from(fault).into()),
        None => error,
    })?;
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

/// Prints the result: as JSON, or for bubblewrap as a line on stderr. isolate prints this line itself.
fn print_result(
    args: &RunArgs,
    subject: &RunSubject,
    report: &RunReport,
    errors: &[SandboxError],
) -> anyhow::Result<()> {
    if args.json {
        return output::json(&RunJson {
            verdict: &report.verdict,
            sandbox: subject.sandbox,
            image: subject.image.as_deref(),
            box_id: Some(report.box_id),
            interrupted: false,
            errors: errors.iter().map(|error| chain_text(error)).collect(),
            code: errors.first().map(|error| ErrorJson::of(error).code),
        });
    }
    if subject.sandbox == Some("bwrap") && !args.program.silent {
        let verdict = &report.verdict;
        match &verdict.message {
            Some(message) => eprintln!("{message}"),
            None => eprintln!(
                "OK ({:.3} sec real, {:.3} sec wall)",
                verdict.time_s.unwrap_or(0.0),
                verdict.wall_time_s.unwrap_or(0.0)
            ),
        }
    }
    Ok(())
}
