//! `run`: one command in a fresh root of an image.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::engine::EngineChoice;
use super::{Context, REFERENCE, output};
use crate::pipeline::read_image;
use crate::roots::Upper;
use crate::sandbox::isolate::{DirRule, Given, Opt, failure_text};
use crate::sandbox::{
    Copy, Job, Outcome, Report, Sandbox, SandboxError, SandboxKind, Spec, Status, Verdict, run as run_job,
};

/// Exit code when the program did not end well, as isolate has it.
const EXIT_PROGRAM: u8 = 1;

/// Run a command in a fresh root of an image, under isolate or bubblewrap
///
/// The program starts in the image's working directory, or else in /box, the only directory of the host's that it has. It
/// is searched for in PATH inside the image. What it writes is gone afterwards, but for what is copied out of the box.
///
/// Options that isolate has too mean the same here. Exits 0 when the program did, 1 when it failed or broke a limit, and
/// 2 when the run could not be done.
#[derive(Debug, Args)]
#[command(next_line_help = false)]
pub(super) struct RunArgs {
    /// The image.
    #[arg(help = REFERENCE, value_name = "REF")]
    reference: String,
    /// Command to run, in place of the image's own
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Sandbox: auto, isolate or bwrap; bubblewrap isolates without limits [default: auto]
    #[arg(long, value_name = "SANDBOX")]
    sandbox: Option<SandboxKind>,
    /// How the image is shown [default: fuse]
    #[arg(long)]
    engine: Option<EngineChoice>,
    /// Where writes go: dir, dir:SIZE, tmpfs:SIZE or none [default: dir]
    #[arg(long, value_name = "UPPER")]
    upper: Option<Upper>,
    /// Program to start in place of the image's entrypoint; empty for none
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<OsString>,
    /// Copy a file or directory into the box before the run
    #[arg(long, value_name = "HOST[=NAME]")]
    copy_in: Vec<OsString>,
    /// Copy a file or directory out of the box after the run
    #[arg(long, value_name = "NAME[=HOST]")]
    copy_out: Vec<OsString>,
    /// Print the result as JSON on stdout; the program's own stdout goes to stderr unless redirected
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    program: ProgramArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits (isolate)")]
struct Limits {
    /// Processor time, in seconds
    #[arg(long, value_name = "SECONDS")]
    time: Option<Seconds>,
    /// Time, in seconds
    #[arg(long, value_name = "SECONDS")]
    wall_time: Option<Seconds>,
    /// Processor time beyond the limit that is waited for
    #[arg(long, value_name = "SECONDS")]
    extra_time: Option<Seconds>,
    /// Address space of each process, in KiB
    #[arg(long, value_name = "KIB")]
    mem: Option<Number>,
    /// Use control groups
    #[arg(long)]
    cg: bool,
    /// Memory of all processes together, in KiB; needs --cg
    #[arg(long, value_name = "KIB")]
    cg_mem: Option<Number>,
    /// Processes and threads, any number where none is given [default: 1]
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true)]
    processes: Option<Option<Number>>,
    /// Stack of a process, in KiB
    #[arg(long, value_name = "KIB")]
    stack: Option<Number>,
    /// Largest file that is written, in KiB
    #[arg(long, value_name = "KIB")]
    fsize: Option<Number>,
    /// Core files, in KiB [default: 0]
    #[arg(long, value_name = "KIB")]
    core: Option<Number>,
    /// Open files of a process, 0 for any number
    #[arg(long, value_name = "N")]
    open_files: Option<Number>,
    /// Disk quota of the box
    #[arg(long, value_name = "BLOCKS,INODES")]
    quota: Option<Quota>,
    /// System calls that are blocked, a bit mask; isolate 2.4 or newer
    #[arg(long, value_name = "FLAGS")]
    syscalls: Option<Number>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Program")]
struct ProgramArgs {
    /// Standard input: a file in the sandbox
    #[arg(long, value_name = "FILE")]
    stdin: Option<OsString>,
    /// Standard output: a file in the sandbox
    #[arg(long, value_name = "FILE")]
    stdout: Option<OsString>,
    /// Standard error: a file in the sandbox
    #[arg(long, value_name = "FILE", conflicts_with = "stderr_to_stdout")]
    stderr: Option<OsString>,
    /// Standard error goes where standard output goes
    #[arg(long)]
    stderr_to_stdout: bool,
    /// Variable, set after the image's; without a value, as it is here
    #[arg(long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Start with all variables that are set here
    #[arg(long)]
    full_env: bool,
    /// Directory to start in, in the sandbox
    #[arg(long, value_name = "DIR")]
    chdir: Option<PathBuf>,
    /// Directory of the host to show, as isolate writes it: IN=OUT[:rw:noexec:maybe:..]
    #[arg(long, value_name = "RULE")]
    dir: Vec<OsString>,
    /// Keep the host's network
    #[arg(long)]
    share_net: bool,
    /// Let the program use the terminal; see isolate's manual
    #[arg(long)]
    tty_hack: bool,
    /// Keep what is no file or directory in the box; isolate 1.10 or newer
    #[arg(long)]
    special_files: bool,
    /// Say nothing of how the program ended
    #[arg(short, long)]
    silent: bool,
    /// File for the result, in isolate's form; `-` is stdout
    #[arg(long, value_name = "FILE")]
    meta: Option<PathBuf>,
    /// Box to use [default: a free one]
    #[arg(long, value_name = "N")]
    box_id: Option<u32>,
}

/// A number that isolate takes.
#[derive(Debug, Clone, Copy)]
struct Number(u32);

impl std::str::FromStr for Number {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<u32>() {
            Ok(number) if i32::try_from(number).is_ok() => Ok(Self(number)),
            _ => Err("a whole number is expected".to_owned()),
        }
    }
}

/// Seconds, with fractions, as they are written: isolate cuts off what it does not understand.
#[derive(Debug, Clone)]
struct Seconds(String);

impl std::str::FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        match text.parse::<f64>() {
            // isolate counts milliseconds in an int.
            Ok(seconds) if plain && seconds < 2_000_000.0 => Ok(Self(text.to_owned())),
            _ => Err("seconds are expected, as in 1.5".to_owned()),
        }
    }
}

/// Two numbers with a comma between.
#[derive(Debug, Clone)]
struct Quota(String);

impl std::str::FromStr for Quota {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let halves =
            text.split_once(',').map(|(blocks, inodes)| (blocks.parse::<Number>(), inodes.parse::<Number>()));
        match halves {
            Some((Ok(_), Ok(_))) => Ok(Self(text.to_owned())),
            _ => Err("two numbers are expected, as in 10240,100".to_owned()),
        }
    }
}

impl RunArgs {
    /// The options that isolate gets as they are.
    fn options(&self) -> Vec<Given> {
        let (limits, program) = (&self.limits, &self.program);
        let number =
            |option, value: Option<Number>| (option, value.map(|Number(number)| number.to_string().into()));
        let seconds =
            |option, value: &Option<Seconds>| (option, value.as_ref().map(|Seconds(text)| text.into()));
        let quota = limits.quota.as_ref().map(|Quota(text)| text.into());
        let valued: [(Opt, Option<OsString>); 14] = [
            seconds(Opt::Time, &limits.time),
            seconds(Opt::WallTime, &limits.wall_time),
            seconds(Opt::ExtraTime, &limits.extra_time),
            number(Opt::Mem, limits.mem),
            number(Opt::CgMem, limits.cg_mem),
            number(Opt::Stack, limits.stack),
            number(Opt::Fsize, limits.fsize),
            number(Opt::Core, limits.core),
            number(Opt::OpenFiles, limits.open_files),
            (Opt::Quota, quota),
            number(Opt::Syscalls, limits.syscalls),
            (Opt::Stdin, program.stdin.clone()),
            (Opt::Stdout, program.stdout.clone()),
            (Opt::Stderr, program.stderr.clone()),
        ];
        let bare = [
            (Opt::Cg, limits.cg),
            (Opt::StderrToStdout, program.stderr_to_stdout),
            (Opt::FullEnv, program.full_env),
            (Opt::ShareNet, program.share_net),
            (Opt::TtyHack, program.tty_hack),
            (Opt::SpecialFiles, program.special_files),
            (Opt::Silent, program.silent || self.json),
        ];
        let valued =
            valued.into_iter().filter_map(|(option, value)| Some(Given { option, value: Some(value?) }));
        let bare =
            bare.into_iter().filter(|(_, given)| *given).map(|(option, _)| Given { option, value: None });
        let processes = limits.processes.map(|count| Given {
            option: Opt::Processes,
            value: count.map(|Number(count)| count.to_string().into()),
        });
        valued.chain(bare).chain(processes).collect()
    }

    fn spec(&self, context: &Context) -> anyhow::Result<Spec> {
        let program = &self.program;
        let upper = context.config.upper(self.upper)?;
        let rules = program.dir.iter().map(|text| Ok(DirRule::parse(text)?));
        Ok(Spec {
            options: self.options(),
            env: program.env.clone(),
            dirs: rules.collect::<anyhow::Result<_>>()?,
            chdir: program.chdir.clone(),
            box_id: program.box_id,
            upper,
            entrypoint: self.entrypoint.clone(),
            command: self.command.clone(),
            copy_in: self.copy_in.iter().map(|text| Copy::into_box(text)).collect::<Result<_, _>>()?,
            copy_out: self.copy_out.iter().map(|text| Copy::out_of_box(text)).collect::<Result<_, _>>()?,
            stdout_to_stderr: self.json && program.stdout.is_none(),
        })
    }
}

/// What `run --json` prints.
#[derive(Debug, Serialize)]
struct RunJson<'a> {
    #[serde(flatten)]
    verdict: &'a Verdict,
    sandbox: Option<&'static str>,
    image: Option<&'a str>,
    box_id: Option<u32>,
    /// What went wrong after the program had ended.
    errors: Vec<String>,
}

/// What is known before the program runs.
#[derive(Debug, Default)]
struct Known {
    sandbox: Option<&'static str>,
    image: Option<String>,
}

pub(super) fn run(context: &Context, args: &RunArgs) -> anyhow::Result<ExitCode> {
    // Before anything is done: a result that cannot be written is none.
    let mut meta = args.program.meta.as_deref().map(MetaFile::open).transpose()?;
    let mut known = Known::default();
    match execute(context, args, &mut known) {
        Ok(Outcome { report, afterwards }) => {
            if let Some(meta) = &mut meta {
                meta.write(&report.meta)?;
            }
            tell(args, &known, &report, &afterwards)?;
            let mut afterwards = afterwards.into_iter();
            match (afterwards.next(), report.verdict.status) {
                (Some(first), _) => {
                    for further in afterwards {
                        tracing::warn!("{:#}", anyhow::Error::from(further));
                    }
                    Err(first.into())
                }
                (None, Status::Ok) => Ok(ExitCode::SUCCESS),
                (None, _) => Ok(ExitCode::from(EXIT_PROGRAM)),
            }
        }
        Err(failure) => {
            let message = format!("{failure:#}");
            if let Some(meta) = &mut meta {
                meta.write(failure_text(&message).as_bytes())?;
            }
            if args.json {
                let verdict = Verdict::internal(message);
                let (sandbox, image) = (known.sandbox, known.image.as_deref());
                output::json(&RunJson {
                    verdict: &verdict,
                    sandbox,
                    image,
                    box_id: None,
                    errors: Vec::new(),
                })?;
            }
            Err(failure)
        }
    }
}

fn execute(context: &Context, args: &RunArgs, known: &mut Known) -> anyhow::Result<Outcome> {
    let spec = args.spec(context)?;
    let config = &context.config.run;
    let store = context.open_store()?;
    let found = context.find(&store, &args.reference)?;
    let name = format!("{}@{}", context.familiar(&found.image.name), found.image.digest);
    known.image = Some(name);
    let image = read_image(&store, &found.image.digest)?;
    let kind = args.sandbox.map_or_else(|| config.sandbox(), Ok)?;
    let sandbox = Sandbox::find(kind, context.config.isolate.path.as_deref(), &context.run_dir)?;
    known.sandbox = Some(sandbox.name());
    if let (Sandbox::Bwrap { .. }, false) = (&sandbox, args.program.silent) {
        eprintln!("note: bubblewrap isolates the program, and enforces no limits on it");
    }
    let (_, lower) = context.lower(&store, &args.reference, args.engine)?;
    let job = Job {
        spec: &spec,
        config: image.config(),
        image: &lower,
        roots: &context.roots(&store)?,
        boxes: &context.boxes(&store)?,
        range: config.box_ids()?,
        sandbox: &sandbox,
        user: config.bwrap_user()?,
    };
    Ok(run_job(&job)?)
}

/// Prints the result: as JSON, or as isolate does, in a line on stderr.
fn tell(args: &RunArgs, known: &Known, report: &Report, afterwards: &[SandboxError]) -> anyhow::Result<()> {
    if args.json {
        let errors = afterwards.iter().map(|error| chain(error)).collect();
        let (sandbox, image) = (known.sandbox, known.image.as_deref());
        return output::json(&RunJson {
            verdict: &report.verdict,
            sandbox,
            image,
            box_id: Some(report.box_id),
            errors,
        });
    }
    if known.sandbox == Some("bwrap") && !args.program.silent {
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

/// An error with its sources, as one sentence.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// The file of `--meta`, open and empty.
struct MetaFile {
    /// None for standard output.
    file: Option<File>,
    path: PathBuf,
}

impl MetaFile {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let file = match path == Path::new("-") {
            true => None,
            false => Some(File::create(path).with_context(|| format!("meta file {}", path.display()))?),
        };
        Ok(Self { file, path: path.to_owned() })
    }

    fn write(&mut self, text: &[u8]) -> anyhow::Result<()> {
        match &mut self.file {
            None => output::bytes(text),
            Some(file) => file.write_all(text).with_context(|| format!("meta file {}", self.path.display())),
        }
    }
}
