//! Measures the cost of a root for one run, without starting our program: alternates isolate alone with isolate in a root
//! that is created before and released after the run.
//!
//! `cargo bench --bench roots -- RUNS STORE RUN-DIR ISOLATE BOX < LINES`, each line
//! `NAME<tab>MOUNTPOINT<tab>IMAGE<tab>UPPER<tab>PROGRAM`, or `NAME<tab>PROGRAM` for isolate alone. Prints name, median, first
//! and third quartile in milliseconds, tab-separated. `scripts/bench-roots` calls it.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Instant;

use rcx_imagefs::roots::{HomesLocation, Lower, Roots, Upper, enter_private_namespace};

/// Rounds before the measured ones.
const WARM_UP: usize = 5;

type BenchError = Box<dyn std::error::Error>;

/// One input line with its measurements.
struct Case {
    name: String,
    /// The image and its upper directory; `None` for isolate alone.
    image: Option<(Arc<Lower>, Upper)>,
    program: Vec<String>,
    milliseconds: Vec<f64>,
}

impl Case {
    fn parse(line: &str) -> Result<Self, BenchError> {
        let fields: Vec<&str> = line.split('\t').collect();
        let (image, program) = match fields[1..] {
            [program] => (None, program),
            [mountpoint, image, upper, program] => {
                let lower = Lower::in_mount(Path::new(mountpoint), Path::new(image))?;
                (Some((Arc::new(lower), upper.parse()?)), program)
            }
            _ => return Err(format!("invalid line: `{line}`").into()),
        };
        let program = program.split(' ').map(str::to_owned).collect();
        Ok(Self { name: fields[0].to_owned(), image, program, milliseconds: Vec::new() })
    }

    /// Returns the measurement at this quantile (0 to 1).
    fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.milliseconds.clone();
        sorted.sort_by(f64::total_cmp);
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let at = (share * (sorted.len() - 1) as f64).round() as usize;
        sorted[at]
    }
}

struct Bench {
    roots: Roots,
    root: String,
    isolate: String,
    box_id: String,
}

impl Bench {
    fn command(&self, rules: &[String], case: &Case) -> Command {
        let mut command = Command::new(&self.isolate);
        command.arg(format!("--box-id={}", self.box_id)).arg("--silent").args(rules);
        command.arg("--run").arg("--").args(&case.program);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Runs the program once. Returns the elapsed milliseconds.
    fn run(&self, case: &Case) -> Result<f64, BenchError> {
        let begin = Instant::now();
        let status = match &case.image {
            None => self.command(&[], case).status()?,
            Some((image, upper)) => {
                let lease = Arc::new(self.roots.lease(upper)?);
                let status = self.run_in_root(case, image, &lease, *upper)?;
                Arc::into_inner(lease).ok_or("the lease has another owner")?.release()?;
                status
            }
        };
        let elapsed = begin.elapsed().as_secs_f64() * 1e3;
        if status.success() { Ok(elapsed) } else { Err(format!("{}: {status}", case.name).into()) }
    }

    fn run_in_root(
        &self,
        case: &Case,
        image: &Arc<Lower>,
        lease: &Arc<rcx_imagefs::roots::RootLease>,
        upper: Upper,
    ) -> Result<std::process::ExitStatus, BenchError> {
        let rw = if upper == Upper::None { "" } else { ":rw" };
        let root = format!("--dir=.={}{rw}", self.root);
        let rules = [
            "--no-default-dirs",
            &root,
            "--dir=./box=./box:rw",
            "--dir=./dev=/dev:dev",
            "--dir=./proc=proc:fs",
        ];
        let mut command = self.command(&rules.map(str::to_owned), case);
        let (image, lease) = (Arc::clone(image), Arc::clone(lease));
        let mount = move || -> std::io::Result<()> {
            enter_private_namespace().map_err(std::io::Error::other)?;
            // The mount stays until the namespace is gone; exec closes its descriptor.
            std::mem::forget(lease.mount(&image, None).map_err(std::io::Error::other)?);
            Ok(())
        };
        // SAFETY: this process has a single thread, so no lock is held and no data is inconsistent in the child.
        #[expect(unsafe_code, reason = "the measured work happens between fork and exec")]
        let spawned = unsafe { command.pre_exec(mount) }.spawn();
        Ok(spawned?.wait()?)
    }
}

fn measure(arguments: &[String]) -> Result<(), BenchError> {
    let [runs, store, run_dir, isolate, box_id] = arguments else { return Ok(()) };
    let runs: usize = runs.parse()?;
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let mut cases: Vec<Case> = text.lines().map(Case::parse).collect::<Result<_, _>>()?;
    let roots = Roots::open(&HomesLocation::Store(store.into()), Path::new(run_dir))?;
    let root = Path::new(run_dir).canonicalize()?.join("root").display().to_string();
    let bench = Bench { roots, root, isolate: isolate.clone(), box_id: box_id.clone() };
    for round in 0..WARM_UP + runs.max(1) {
        for case in &mut cases {
            let milliseconds = bench.run(case)?;
            if round >= WARM_UP {
                case.milliseconds.push(milliseconds);
            }
        }
    }
    for case in &cases {
        let quantile = |share| case.quantile(share);
        println!("{}\t{:.3}\t{:.3}\t{:.3}", case.name, quantile(0.5), quantile(0.25), quantile(0.75));
    }
    Ok(())
}

fn main() -> ExitCode {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match measure(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
