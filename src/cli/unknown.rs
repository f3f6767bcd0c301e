//! Advice for arguments of docker and podman that this program does not have.

use clap::error::ContextKind;

/// What other engines call it, and what a user of theirs is looking for.
type Advice = (&'static [&'static str], &'static str);

/// Commands.
const COMMANDS: &[Advice] = &[
    (&["ps"], "`rcx-imagefs root list` lists the roots that exist, and `status` shows the daemon"),
    (
        &["exec", "attach", "create", "start", "stop", "kill"],
        "a run ends with its command; `rcx-imagefs root create` makes a root that stays",
    ),
    (
        &["build"],
        "`rcx-imagefs env build` builds reviewed environments; buildah, podman or docker build other images",
    ),
    (&["commit"], "`rcx-imagefs root commit` makes an image of a root"),
    (
        &["save", "export"],
        "`rcx-imagefs unpack` copies an image into a directory, and `cp` copies files out of it",
    ),
    (&["import"], "`rcx-imagefs load` loads images from a file"),
    (&["image"], "use `rcx-imagefs images`, `inspect`, `pull`, `load`, `tag` or `rm`"),
    (&["history"], "`rcx-imagefs inspect` shows the layers of an image"),
    (&["info"], "use `rcx-imagefs doctor`, `status` or `version`"),
    (&["prune", "system"], "use `rcx-imagefs gc` to free disk space, and `df` to show it"),
    (&["search"], "this program cannot search a registry"),
    (&["umount", "unmount"], "unmount with umount(8); this also ends the daemon"),
];

/// Options of `run`.
const RUN_OPTIONS: &[Advice] = &[
    (&["--rm"], "omit it: what a run writes is always removed afterwards"),
    (&["-e"], "use `--env NAME=VALUE`"),
    (&["--volume", "--mount"], "use `--dir IN=OUT`, or `--dir IN=OUT:rw` to let the program write"),
    (&["-w", "--workdir"], "use `--chdir DIR`"),
    (&["-u", "--user"], "the sandbox chooses the user; no program of a run is root"),
    (&["-d", "--detach"], "a run ends with its command; start it in the background of your shell"),
    (&["--name"], "a run has no name; `rcx-imagefs root create --id ID` makes a root that stays"),
    (&["-m", "--memory"], "use `--mem KIB`, or `--cg --cg-mem KIB` for all processes together"),
    (&["--pids-limit"], "use `--processes=N`"),
    (&["--net", "--network"], "use `--share-net` for the host's network; without it, a program has none"),
    (&["-p", "--publish"], "use `--share-net`: the program then listens on the host itself"),
    (&["--read-only"], "use `--upper none`"),
];

/// Options of other commands.
const OPTIONS: &[(&str, &[Advice])] = &[
    ("run", RUN_OPTIONS),
    ("pull", &[(&["-a", "--all-tags"], "name each tag, or list them in a file for `--from`")]),
    ("ls", &[(&["-l", "-a"], "omit it: `ls` always shows all names and their details")]),
    ("cp", &[(&["-r"], "omit it: a directory is always copied with all its content")]),
    ("rm", &[(&["-f", "--force"], "omit it: `rm` also removes an image that is in use")]),
    (
        "login",
        &[(&["-p", "--password"], "use `--password-stdin`: other users can read the arguments of a program")],
    ),
];

/// Returns advice for an argument that clap refused. `arguments` is the whole command line.
pub(super) fn advice(error: &clap::Error, arguments: &[String]) -> Option<&'static str> {
    let context = |kind| error.get(kind).map(ToString::to_string);
    if let Some(command) = context(ContextKind::InvalidSubcommand) {
        return find(COMMANDS, &command);
    }
    let option = context(ContextKind::InvalidArg)?;
    let (_, options) =
        OPTIONS.iter().find(|(command, _)| arguments.iter().any(|argument| argument == command))?;
    find(options, &option)
}

fn find(list: &[Advice], word: &str) -> Option<&'static str> {
    list.iter().find(|(words, _)| words.contains(&word)).map(|(_, advice)| *advice)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    fn refused(words: &[&str]) -> Option<&'static str> {
        let arguments: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let words = std::iter::once("rcx-imagefs").chain(words.iter().copied());
        advice(&Cli::try_parse_from(words).unwrap_err(), &arguments)
    }

    #[test]
    fn every_word_with_advice_is_refused_and_gets_it() {
        for (words, advice) in COMMANDS {
            for word in *words {
                assert_eq!(refused(&[word, "python"]), Some(*advice), "{word}");
            }
        }
        for (command, options) in OPTIONS {
            for (words, advice) in *options {
                for word in *words {
                    assert_eq!(refused(&[command, word, "python"]), Some(*advice), "{command} {word}");
                }
            }
        }
    }

    #[test]
    fn other_words_get_no_advice() {
        assert_eq!(refused(&["pul"]), None);
        assert_eq!(refused(&["run", "--tim", "1", "python"]), None);
        assert_eq!(refused(&["images", "--rm"]), None);
    }
}
