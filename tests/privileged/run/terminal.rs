//! Interactive runs, in a pseudoterminal of the test.

use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Winsize};

use super::Runner;

/// How long to wait for output.
const PATIENCE: Duration = Duration::from_secs(60);

/// A terminal with a run in it.
struct Terminal {
    outer: OwnedFd,
    inner: OwnedFd,
    /// Its settings before the program is started.
    before: String,
    child: Child,
    /// All output so far.
    output: String,
}

impl Terminal {
    /// Starts a program as the leader of a session with a new terminal.
    fn start(command: &Command) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let outer = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&outer).unwrap();
        let inner = rustix::pty::ioctl_tiocgptpeer(&outer, flags).unwrap();
        // No echo, so that the output has only what programs print.
        let mut settings = rustix::termios::tcgetattr(&inner).unwrap();
        settings.local_modes.remove(rustix::termios::LocalModes::ECHO);
        rustix::termios::tcsetattr(&inner, OptionalActions::Now, &settings).unwrap();
        rustix::termios::tcsetwinsize(&outer, size(33, 77)).unwrap();
        // Before the run changes them.
        let before = format!("{:?}", rustix::termios::tcgetattr(&inner).unwrap());
        let mut session = Command::new("setsid");
        session.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            session.env(name, value.unwrap_or_default());
        }
        session.env("TERM", "vt220").current_dir(command.get_current_dir().unwrap());
        let copy = || std::process::Stdio::from(inner.try_clone().unwrap());
        session.stdin(copy()).stdout(copy()).stderr(copy());
        let child = session.spawn().unwrap();
        Self { outer, inner, before, child, output: String::new() }
    }

    fn settings(&self) -> String {
        format!("{:?}", rustix::termios::tcgetattr(&self.inner).unwrap())
    }

    fn type_text(&self, text: &str) {
        assert_eq!(rustix::io::write(&self.outer, text.as_bytes()).unwrap(), text.len());
    }

    /// Reads until the output contains `text`, and forgets the output up to there.
    #[track_caller]
    fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.output.find(text) {
                let rest = self.output.split_off(at + text.len());
                return std::mem::replace(&mut self.output, rest);
            }
            assert!(Instant::now() < deadline, "no {text:?} in {:?}", self.output);
            self.read();
        }
    }

    /// Reads what the terminal shows, waiting for a second if there is nothing.
    fn read(&mut self) {
        let wait = Timespec { tv_sec: 1, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.outer, PollFlags::IN)];
        if rustix::event::poll(&mut fds, Some(&wait)).unwrap() > 0 {
            let mut buffer = [0; 4096];
            let length = rustix::io::read(&self.outer, &mut buffer).unwrap();
            self.output.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    }

    /// Waits for the end of the run. Returns its exit code, and what programs have typed into the terminal.
    fn finish(mut self) -> (Option<i32>, Vec<u8>) {
        let code = self.child.wait().unwrap().code();
        rustix::io::ioctl_fionbio(&self.inner, true).unwrap();
        let mut typed = vec![0; 4096];
        let length = match rustix::io::read(&self.inner, &mut typed[..]) {
            Err(Errno::AGAIN) => 0,
            result => result.unwrap(),
        };
        typed.truncate(length);
        (code, typed)
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// A shell works: it has its user's name, its jobs, and the name and size of the terminal, Ctrl-C reaches its program, and the
/// caller's terminal is as before at the end.
fn shell_is_interactive(runner: &Runner) {
    let image = runner.pull("python");
    for options in [&[][..], &["-it"]] {
        let mut command = runner.program.command(&["run", "--sandbox", runner.sandbox]);
        // Without `--`: the first word after the image begins the command.
        command.args(options).args([&image, "bash", "--norc"]);
        runner.set_up(&mut command);
        let mut terminal = Terminal::start(&command);
        terminal.type_text("PS1='ready'; echo $((6 * 7)) $(id -un) $TERM $(stty size) $(tty)\n");
        // bubblewrap has terminals of its own, and shows the one it got under this name.
        let name = if runner.sandbox == "bwrap" { "/dev/console" } else { "/dev/pts/0" };
        let greeting = terminal.expect(&format!("42 box vt220 33 77 {name}\r\n"));
        assert!(!greeting.contains("job control") && !greeting.contains("I have no name"), "{greeting}");
        assert_ne!(terminal.settings(), terminal.before);
        // Printed by the program that the key is to end: a shell that is about to start a program may lose the key.
        terminal.type_text("sh -c 'echo going to\" sleep\"; exec sleep 1000'; echo slept $?\n");
        terminal.expect("going to sleep\r\n");
        terminal.type_text("\x03");
        terminal.expect("ready");
        terminal.type_text("echo is\" alive\"\n");
        terminal.expect("is alive");
        rustix::termios::tcsetwinsize(&terminal.outer, size(44, 99)).unwrap();
        terminal.type_text("while [ \"$(stty size)\" != '44 99' ]; do :; done; echo re\"sized\"\n");
        terminal.expect("resized");
        terminal.type_text("sleep 1000 & jobs; kill %1; seq 3000; exit 3\n");
        terminal.expect("Running");
        terminal.expect("\r\n3000\r\n");
        terminal.expect("Exited with error status 3");
        support::child::wait_until("the terminal is as before", || terminal.settings() == terminal.before);
        assert_eq!(terminal.finish(), (Some(1), Vec::new()));
        runner.assert_clean();
    }
}

/// A program cannot type commands for the shell of the caller.
fn program_cannot_type_into_the_terminal_of_its_caller(runner: &Runner) {
    let image = runner.pull("python");
    let script = "import fcntl, os, termios
for name in '/dev/tty', '/proc/self/fd/0':
    try:
        for byte in b'reboot\\n': fcntl.ioctl(os.open(name, os.O_RDWR), termios.TIOCSTI, bytes([byte]))
    except OSError as error: print(error)
print('do' + 'ne')";
    let mut command = runner.program.command(&["run", "--sandbox", runner.sandbox]);
    command.args([&image, "python3", "-c", script]);
    runner.set_up(&mut command);
    let mut terminal = Terminal::start(&command);
    terminal.expect("done\r\n");
    assert_eq!(terminal.finish(), (Some(0), Vec::new()));
    runner.assert_clean();
}

#[test]
#[ignore = "needs isolate on PATH"]
fn shell_under_isolate_is_interactive_in_a_terminal() {
    let (mut runner, isolates) = Runner::with_isolate(386);
    for isolate in isolates {
        runner.isolate = Some(isolate);
        shell_is_interactive(&runner);
        program_cannot_type_into_the_terminal_of_its_caller(&runner);
    }
    runner.mount.stop();
}

#[test]
fn shell_under_bubblewrap_is_interactive_in_a_terminal() {
    let runner = Runner::new(430, "bwrap");
    shell_is_interactive(&runner);
    program_cannot_type_into_the_terminal_of_its_caller(&runner);
    runner.mount.stop();
}

#[test]
fn terminal_is_refused_where_there_is_none() {
    let runner = Runner::new(452, "bwrap");
    let image = runner.pull("small");
    let parts = ["option `--tty`: standard input and output are not the terminal of this process"];
    for options in [&["-t"][..], &["-it"], &["--tty", "--interactive"]] {
        runner.assert_refused(&image, options, &["sh"], &parts);
    }
    assert_eq!(runner.ok(&image, &["-i"], &["cat", "/etc/motd"]), "a small image\n");
    runner.mount.stop();
}
