//! Times commands alternately: `cargo bench --bench alternate -- RUNS < LINES`, each line `NAME<tab>WORD WORD... [; WORD...]`.
//!
//! Starting a shell takes longer than most measured commands, so commands are started directly, and a sequence (`;`) is timed
//! as a whole. Each round runs every line once, so that other load on the machine affects all lines equally. Prints name,
//! median, first and third quartile in milliseconds, tab-separated.

use std::io::Read as _;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// Rounds before the measured ones.
const WARM_UP: usize = 5;

/// One input line with its measurements.
struct Line {
    name: String,
    commands: Vec<Vec<String>>,
    milliseconds: Vec<f64>,
}

impl Line {
    fn parse(text: &str) -> Option<Self> {
        let (name, rest) = text.split_once('\t')?;
        let words: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
        let commands = words.split(|word| word == ";").filter(|words| !words.is_empty());
        let commands: Vec<_> = commands.map(<[String]>::to_vec).collect();
        (!commands.is_empty()).then(|| Self { name: name.to_owned(), commands, milliseconds: Vec::new() })
    }

    /// Runs the commands in order. Returns the elapsed milliseconds, or an error if a command fails.
    fn run(&self) -> Result<f64, String> {
        let begin = Instant::now();
        for words in &self.commands {
            let mut command = Command::new(&words[0]);
            let status = command
                .args(&words[1..])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .map_err(|error| format!("{}: {}: {error}", self.name, words[0]))?;
            if !status.success() {
                return Err(format!("{}: {}: {status}", self.name, words.join(" ")));
            }
        }
        Ok(begin.elapsed().as_secs_f64() * 1e3)
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

fn measure() -> Result<(), String> {
    // Cargo adds `--bench`. `cargo bench` without RUNS measures nothing.
    let runs = std::env::args().skip(1).find(|argument| argument != "--bench");
    let Some(runs) = runs else { return Ok(()) };
    let runs: usize = runs.parse().map_err(|_| format!("RUNS must be a number: `{runs}`"))?;
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|error| error.to_string())?;
    let lines: Option<Vec<Line>> = text.lines().filter(|line| !line.is_empty()).map(Line::parse).collect();
    let mut lines = lines.ok_or("each line must be a name, a tab and a command")?;
    for round in 0..WARM_UP + runs.max(1) {
        for line in &mut lines {
            let milliseconds = line.run()?;
            if round >= WARM_UP {
                line.milliseconds.push(milliseconds);
            }
        }
    }
    for line in &lines {
        let quantile = |share| line.quantile(share);
        println!("{}\t{:.3}\t{:.3}\t{:.3}", line.name, quantile(0.5), quantile(0.25), quantile(0.75));
    }
    Ok(())
}

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
