//! The options of `run` that isolate has too.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::sandbox::is_in_terminal;
use crate::sandbox::isolate::{GivenOption, IsolateOption};

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits (isolate)")]
pub(super) struct LimitArgs {
    /// Processor time, in seconds
    #[arg(long, value_name = "SECONDS")]
    pub(super) time: Option<Seconds>,
    /// Wall-clock time, in seconds
    #[arg(long, value_name = "SECONDS")]
    pub(super) wall_time: Option<Seconds>,
    /// Seconds by which --time may be exceeded before the program is killed
    #[arg(long, value_name = "SECONDS")]
    pub(super) extra_time: Option<Seconds>,
    /// Address space of each process, in KiB
    #[arg(long, value_name = "KIB")]
    pub(super) mem: Option<IsolateNumber>,
    /// Use control groups
    #[arg(long)]
    pub(super) cg: bool,
    /// Memory of all processes together, in KiB; needs --cg
    #[arg(long, value_name = "KIB")]
    pub(super) cg_mem: Option<IsolateNumber>,
    /// Processes and threads; without N, any number [default: 1]
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true)]
    pub(super) processes: Option<Option<IsolateNumber>>,
    /// Stack of each process, in KiB
    #[arg(long, value_name = "KIB")]
    pub(super) stack: Option<IsolateNumber>,
    /// Size of files that the program writes, in KiB
    #[arg(long, value_name = "KIB")]
    pub(super) fsize: Option<IsolateNumber>,
    /// Size of core files, in KiB [default: 0]
    #[arg(long, value_name = "KIB")]
    pub(super) core: Option<IsolateNumber>,
    /// Open files of each process; 0 for any number
    #[arg(long, value_name = "N")]
    pub(super) open_files: Option<IsolateNumber>,
    /// Disk quota of the box
    #[arg(long, value_name = "BLOCKS,INODES")]
    pub(super) quota: Option<BoxQuota>,
    /// System calls to block, as a bit mask; needs isolate 2.4 or newer
    #[arg(long, value_name = "FLAGS")]
    pub(super) syscalls: Option<IsolateNumber>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Program")]
pub(super) struct ProgramArgs {
    /// File in the sandbox that is the program's standard input
    #[arg(long, value_name = "FILE")]
    pub(super) stdin: Option<OsString>,
    /// File in the sandbox that receives the program's standard output
    #[arg(long, value_name = "FILE")]
    pub(super) stdout: Option<OsString>,
    /// File in the sandbox that receives the program's standard error
    #[arg(long, value_name = "FILE", conflicts_with = "stderr_to_stdout")]
    pub(super) stderr: Option<OsString>,
    /// Redirect standard error to standard output
    #[arg(long)]
    pub(super) stderr_to_stdout: bool,
    /// Set a variable, overriding the image's; without VALUE, inherit it from the caller's environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(super) env: Vec<OsString>,
    /// Pass all variables of the caller's environment
    #[arg(long)]
    pub(super) full_env: bool,
    /// Working directory, in the sandbox
    #[arg(long, value_name = "DIR")]
    pub(super) chdir: Option<PathBuf>,
    /// Bind a directory of the host, in isolate's syntax: IN=OUT[:rw:noexec:maybe:..]
    #[arg(long, value_name = "RULE")]
    pub(super) dir: Vec<OsString>,
    /// Share the host's network; without it, the program has only a loopback interface of its own
    #[arg(long)]
    pub(super) share_net: bool,
    /// Give the program a terminal of its own, shown on this one; implied in a terminal unless a stream is redirected
    #[arg(short = 't', long, conflicts_with_all = ["json", "stdin", "stdout", "tty_hack"])]
    pub(super) tty: bool,
    /// Has no effect: standard input is always passed on
    #[arg(short = 'i', long)]
    pub(super) interactive: bool,
    /// Let the program control this terminal; see isolate(1)
    #[arg(long)]
    pub(super) tty_hack: bool,
    /// Keep special files in the box; needs isolate 1.10 or newer
    #[arg(long)]
    pub(super) special_files: bool,
    /// Do not print how the program ended
    #[arg(short, long)]
    pub(super) silent: bool,
    /// File for the result, in isolate's format; `-` is stdout
    #[arg(long, value_name = "FILE")]
    pub(super) meta: Option<PathBuf>,
    /// Box to use [default: a free box from `box-ids` in the configuration]
    #[arg(long, value_name = "N")]
    pub(super) box_id: Option<u32>,
    /// Wait until a box is free, at most for SECONDS
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true)]
    pub(super) wait: Option<Option<Seconds>>,
}

/// A number as isolate accepts it: from 0 to 2^31 - 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct IsolateNumber(u32);

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
pub(super) struct Seconds(String);

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
pub(super) struct BoxQuota(String);

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

impl ProgramArgs {
    /// Returns how long to wait for a free box.
    pub(super) fn wait(&self) -> Option<Duration> {
        let seconds = |Seconds(text): &Seconds| text.parse().map_or(Duration::MAX, Duration::from_secs_f64);
        self.wait.as_ref().map(|limit| limit.as_ref().map_or(Duration::MAX, seconds))
    }

    /// Returns whether the program gets a terminal of its own: on request, and if this process is in a terminal that `json` and the
    /// options do not use otherwise.
    pub(super) fn terminal(&self, json: bool) -> bool {
        let is_redirected = json || self.tty_hack || self.stdin.is_some() || self.stdout.is_some();
        self.tty || (!is_redirected && is_in_terminal())
    }

    /// Returns the options that are passed to isolate unchanged. With `silent`, isolate does not print how the program ended.
    pub(super) fn isolate_options(&self, limits: &LimitArgs, silent: bool) -> Vec<GivenOption> {
        let program = self;
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
            (IsolateOption::Silent, program.silent || silent),
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
}
