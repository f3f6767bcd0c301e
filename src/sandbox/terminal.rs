//! The terminal of a run that is started in a terminal.
//!
//! A program that has the caller's terminal can type commands for the shell that the caller returns to (TIOCSTI in
//! ioctl_tty(2)), and that shell is root's. So the run gets a terminal of its own, as with docker and ssh: a pseudoterminal whose input and
//! output this process copies. The caller's terminal is in raw mode meanwhile, so Ctrl-C reaches the program and not this process.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::fs::{Gid, OFlags, Uid};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios};

/// Bytes that are copied at once.
const COPY_BYTES: usize = 16 << 10;

/// Returns whether this process may read from and write to a terminal: standard input and output are terminals, and it is not in
/// the background of its shell.
#[must_use]
pub fn is_in_terminal() -> bool {
    let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    rustix::termios::isatty(stdin)
        && rustix::termios::isatty(stdout)
        && rustix::termios::tcgetpgrp(stdin).is_ok_and(|group| group == rustix::process::getpgrp())
}

/// A terminal for one run.
#[derive(Debug)]
pub(super) struct RunTerminal {
    /// Read and written by this process.
    outer: Arc<OwnedFd>,
    /// The terminal of the program.
    inner: OwnedFd,
}

impl RunTerminal {
    /// Makes a terminal with the size and the settings of the caller's. It belongs to `user` if that is known, so that programs can
    /// open it again, as `/dev/stdin`.
    pub(super) fn open(user: Option<(u32, u32)>) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let outer = rustix::pty::openpt(flags)?;
        rustix::pty::unlockpt(&outer)?;
        let inner = rustix::pty::ioctl_tiocgptpeer(&outer, flags)?;
        // Not O_NONBLOCK in `flags`: both ends would have it.
        let status = rustix::fs::fcntl_getfl(&outer)?;
        rustix::fs::fcntl_setfl(&outer, status | OFlags::NONBLOCK)?;
        if let Some((uid, _)) = user {
            // The group stays that of terminals.
            rustix::fs::fchown(&inner, Some(Uid::from_raw(uid)), None::<Gid>)?;
        }
        let settings = rustix::termios::tcgetattr(rustix::stdio::stdin())?;
        rustix::termios::tcsetattr(&inner, OptionalActions::Now, &settings)?;
        copy_size(outer.as_fd());
        Ok(Self { outer: Arc::new(outer), inner })
    }

    /// The terminal of the program.
    pub(super) fn inner(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }

    /// Makes this terminal the controlling terminal of the calling process, and its standard streams that are terminals. To be
    /// called in the child that executes the sandbox.
    pub(super) fn take_over(inner: BorrowedFd<'_>) -> io::Result<()> {
        rustix::process::setsid()?;
        rustix::process::ioctl_tiocsctty(inner)?;
        if rustix::termios::isatty(rustix::stdio::stdin()) {
            rustix::stdio::dup2_stdin(inner)?;
        }
        if rustix::termios::isatty(rustix::stdio::stdout()) {
            rustix::stdio::dup2_stdout(inner)?;
        }
        if rustix::termios::isatty(rustix::stdio::stderr()) {
            rustix::stdio::dup2_stderr(inner)?;
        }
        Ok(())
    }

    /// Starts to copy between this terminal and the caller's, in a thread. No process may be forked until the result is dropped.
    pub(super) fn relay(self) -> io::Result<TerminalRelay> {
        let stop = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?);
        let previous = rustix::termios::tcgetattr(rustix::stdio::stdin())?;
        let mut raw = previous.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)?;
        let mut relay = TerminalRelay { terminal: self, previous, stop, thread: None };
        let (outer, stop) = (Arc::clone(&relay.terminal.outer), Arc::clone(&relay.stop));
        let copy = move || copy(outer.as_fd(), stop.as_fd());
        relay.thread = Some(std::thread::Builder::new().name("terminal".to_owned()).spawn(copy)?);
        Ok(relay)
    }
}

/// The copying between the caller's terminal and that of a run. Ends, and restores the caller's terminal, when it is dropped. All
/// processes of the run must have ended before.
#[derive(Debug)]
pub(super) struct TerminalRelay {
    terminal: RunTerminal,
    /// The settings of the caller's terminal.
    previous: Termios,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl TerminalRelay {
    /// Gives the terminal of the run the size of the caller's.
    pub(super) fn resize(&self) {
        copy_size(self.terminal.outer.as_fd());
    }
}

impl Drop for TerminalRelay {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let stopped = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
            if stopped.is_ok() && !matches!(thread.join(), Ok(Ok(()))) {
                tracing::debug!("copying between the terminals failed");
            }
        }
        // Waits until all output has been written.
        let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.previous);
    }
}

fn copy_size(terminal: BorrowedFd<'_>) {
    // The size is a convenience: a program without one assumes 24 lines of 80 columns.
    if let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin()) {
        let _ = rustix::termios::tcsetwinsize(terminal, size);
    }
}

/// Copies in both directions until `stop` is readable and all output is copied.
fn copy(outer: BorrowedFd<'_>, stop: BorrowedFd<'_>) -> io::Result<()> {
    let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    let mut buffer = [0_u8; COPY_BYTES];
    // Input that the program's terminal has not taken yet.
    let mut pending: Vec<u8> = Vec::new();
    let mut has_input = true;
    loop {
        let output = PollFlags::IN | if pending.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let mut fds =
            vec![PollFd::from_borrowed_fd(stop, PollFlags::IN), PollFd::from_borrowed_fd(outer, output)];
        if has_input && pending.is_empty() {
            fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
        }
        match rustix::event::poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            result => result?,
        };
        let is_stopped = !fds[0].revents().is_empty();
        let has_typed = fds.get(2).is_some_and(|fd| !fd.revents().is_empty());
        match rustix::io::read(outer, &mut buffer) {
            Ok(length) if length > 0 => write_all(stdout, &buffer[..length])?,
            Err(Errno::AGAIN | Errno::INTR) if !is_stopped => {}
            // Nothing is left to copy.
            Ok(_) | Err(_) if is_stopped => return Ok(()),
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        if has_typed {
            match rustix::io::read(stdin, &mut buffer) {
                Ok(length) if length > 0 => pending.extend(&buffer[..length]),
                Err(Errno::INTR | Errno::AGAIN) => {}
                // The caller's terminal is gone. The run ends by SIGHUP.
                Ok(_) | Err(_) => has_input = false,
            }
        }
        if !pending.is_empty() {
            match rustix::io::write(outer, &pending) {
                Ok(length) => drop(pending.drain(..length)),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::INTR) => {}
            // The caller's terminal may be in non-blocking mode, which all who have it share.
            Err(Errno::AGAIN) => {
                rustix::event::poll(&mut [PollFd::from_borrowed_fd(to, PollFlags::OUT)], None)?;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
