//! The arguments of the stand-in for isolate, which is set-uid root and callable by every user, and isolate's meta file.
//!
//! Properties: arguments parse exactly as glibc's `getopt_long` parses them with isolate's table, and parsed arguments
//! written out parse the same. A call rewritten for an image has exactly one rule for the root, ours, which comes first;
//! it has no two rules for one directory, and it keeps the caller's command, limits and variables. A failure message takes
//! one line of the meta file, whatever it contains.

use std::collections::HashSet;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use rcx_imagefs::sandbox::isolate::{
    DirRule, IsolateCall, IsolateError, IsolateMeta, IsolateMode, IsolateOption, IsolateVersion, components,
    failure_text, is_root,
};
use rcx_imagefs::sandbox::shim::{
    BoxImages, CallRewrite, HostCommands, ImageChoice, choose, may_request_image,
};

use crate::glibc::{self, HasArg};
use crate::input::Input;

const WORDS: [&str; 60] = [
    "--run",
    "--init",
    "--cleanup",
    "--cg",
    "--cg-timing",
    "--no-cg-timing",
    "--cg-mem=1",
    "--box-id=7",
    "--box-id",
    "-b",
    "-b1",
    "-vvb",
    "--",
    "-",
    "--dir=.=/images/a",
    "--dir=./=/images/lab/a:1:rw",
    "--dir=.=/images/../x",
    "--dir=/etc",
    "--dir=tmp=",
    "--dir=a=/b:rw:maybe",
    "--dir=./box=./box:rw",
    "--dir=proc=proc:fs",
    "-d",
    "--dir",
    "--env=RCX_IMAGEFS_IMAGE=x",
    "-E",
    "RCX_IMAGEFS_IMAGE=lab/a:1",
    "--env=PATH=/b",
    "--env=RCX_IMAGEFS_IMAGE=",
    "--processes",
    "--processes=4",
    "-p",
    "-p4",
    "-D",
    "--no-default-dirs",
    "--meta=/tmp/m",
    "-M",
    "--m",
    "--me",
    "--s",
    "--st",
    "--std",
    "--stdi=x",
    "--wa",
    "--t",
    "--ti=1",
    "--share-net",
    "-e",
    "prog",
    "a",
    "/images/x",
    "--dir=dev=/d",
    "--dir=.:tmp",
    "--dir=..=/x",
    "--dir=a/./b=/x",
    "--dir=a//b",
    "--version",
    "--full-env=1",
    "--as-uid",
    "0",
];

/// isolate's own option table: name, letter (0 for none), and whether the option takes an argument.
const TABLE: [(&str, u8, HasArg); 41] = {
    use HasArg::{No, Optional, Required};
    [
        ("as-gid", 0, Required),
        ("as-uid", 0, Required),
        ("box-id", b'b', Required),
        ("cg", 0, No),
        ("cg-mem", 0, Required),
        ("cg-timing", 0, No),
        ("chdir", b'c', Required),
        ("check-config", 0, No),
        ("cleanup", 0, No),
        ("core", 0, Required),
        ("dir", b'd', Required),
        ("env", b'E', Required),
        ("extra-time", b'x', Required),
        ("fsize", b'f', Required),
        ("full-env", b'e', No),
        ("inherit-fds", 0, No),
        ("init", 0, No),
        ("mem", b'm', Required),
        ("meta", b'M', Required),
        ("no-cg-timing", 0, No),
        ("no-default-dirs", b'D', No),
        ("open-files", b'n', Required),
        ("print-cg-root", 0, No),
        ("processes", b'p', Optional),
        ("quota", b'q', Required),
        ("run", 0, No),
        ("share-net", 0, No),
        ("silent", b's', No),
        ("special-files", 0, No),
        ("stack", b'k', Required),
        ("stderr", b'r', Required),
        ("stderr-to-stdout", 0, No),
        ("stdin", b'i', Required),
        ("stdout", b'o', Required),
        ("syscalls", 0, Required),
        ("time", b't', Required),
        ("tty-hack", 0, No),
        ("verbose", b'v', No),
        ("version", 0, No),
        ("wait", 0, No),
        ("wall-time", b'w', Required),
    ]
};

/// Runs the target on one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 8 {
        0 => check_meta(input.rest()),
        1 => check_rule(OsStr::from_bytes(input.rest())),
        2 => {
            let words = input.rest().split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec()));
            check_call(&words.collect::<Vec<_>>());
        }
        _ => {
            let mut words = Vec::new();
            while !input.is_empty() && words.len() < 40 {
                let mut word = input.pick(&WORDS).as_bytes().to_vec();
                match input.below(12) {
                    0 => word = input.chunk().to_vec(),
                    1 => input.mutate(&mut word),
                    2 => {
                        let (name, ..) = input.pick(&TABLE);
                        let length = input.below(name.len() + 1);
                        word = [&b"--"[..], &name.as_bytes()[..length], input.pick(&[&b""[..], b"=", b"=v"])]
                            .concat();
                    }
                    _ => {}
                }
                // An argument cannot contain a NUL byte.
                word.retain(|byte| *byte != 0);
                words.push(OsString::from_vec(word));
            }
            check_call(&words);
        }
    }
}

fn check_meta(bytes: &[u8]) {
    let meta = IsolateMeta::parse(bytes);
    for (key, _) in meta.pairs() {
        assert!(!key.contains([':', '\n']) && meta.value(key).is_some());
    }
    let last = meta.pairs().filter(|(key, _)| *key == "status").last();
    assert_eq!(meta.is_internal_error(), last.is_some_and(|(_, value)| value == "XX"));
    let message = String::from_utf8_lossy(bytes);
    let text = failure_text(&message);
    let failed = IsolateMeta::parse(text.as_bytes());
    assert!(failed.is_internal_error());
    assert_eq!(failed.pairs().map(|(key, _)| key).collect::<Vec<_>>(), ["status", "message"], "{text:?}");
    assert!(text.bytes().filter(|byte| *byte == b'\n').count() == 2 && text.is_char_boundary(text.len()));
    let _ = IsolateVersion::parse(bytes);
}

fn check_rule(text: &OsStr) {
    let Ok(rule) = DirRule::parse(text) else { return };
    assert!(!rule.inside.as_bytes().starts_with(b"/") && components(&rule.inside).all(|part| part != ".."));
    if let Ok(spelled) = rule.to_value() {
        assert_eq!(DirRule::parse(&spelled).expect("a written rule parses"), rule);
    }
}

/// An option's name and value.
type ParsedOption = (&'static str, Option<OsString>);

/// Parses arguments as isolate does. Returns `None` where isolate refuses them.
fn parse_with_glibc(words: &[OsString], in_order: bool) -> Option<(Vec<ParsedOption>, Vec<OsString>)> {
    let words: Vec<CString> = words.iter().map(|word| CString::new(word.as_bytes()).unwrap()).collect();
    let (options, arguments) = glibc::getopt_long(&words, &TABLE, in_order)?;
    let modes: HashSet<&str> = options
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| {
            matches!(*name, "init" | "run" | "cleanup" | "version" | "print-cg-root" | "check-config")
        })
        .collect();
    (modes.len() < 2).then_some((options, arguments))
}

fn check_call(words: &[OsString]) {
    if words.iter().any(|word| word.as_bytes().contains(&0)) {
        return;
    }
    for in_order in [false, true] {
        let call = IsolateCall::parse(words, None, in_order);
        let expected = parse_with_glibc(words, in_order);
        match (&call, &expected) {
            (Ok(call), Some((options, arguments))) => {
                let parsed: Vec<ParsedOption> =
                    call.options.iter().map(|given| (given.option.name(), given.value.clone())).collect();
                assert_eq!((&parsed, &call.arguments), (options, arguments), "{words:?}");
            }
            (Err(error), None) => assert!(!error.to_string().is_empty()),
            _ => panic!("{words:?}: got {call:?}, expected {expected:?}"),
        }
        if let Ok(call) = call {
            assert_eq!(
                IsolateCall::parse(&call.to_arguments(), None, in_order).unwrap(),
                call,
                "the written arguments parse as a different call"
            );
            call.values(IsolateOption::Dir).for_each(check_rule);
            check_rewrite(&call);
        }
    }
    for version in [IsolateVersion::new(1, 8, 1), IsolateVersion::new(1, 10, 1), IsolateVersion::new(2, 6, 0)]
    {
        if let Err(IsolateError::UnknownOption(name)) = IsolateCall::parse(words, Some(version), false) {
            assert!(name.as_bytes().starts_with(b"-"));
        }
    }
    let _ = may_request_image(words, &BoxImages::default(), Some(Path::new("/images")));
}

fn check_rewrite(call: &IsolateCall) {
    let images = BoxImages::new([("default", "d"), ("7", "s:1"), ("8", "")]).unwrap();
    let host_commands = HostCommands::new(["/usr/bin/judge-*"]).unwrap();
    let Ok(choice) = choose(call, &images, &host_commands, || Ok(Some("/images".into()))) else { return };
    let below_mount = match &choice {
        ImageChoice::Unchanged => return,
        ImageChoice::Image { name, .. } => name.as_path(),
        ImageChoice::OfCommand => {
            Path::new(&call.arguments[0]).strip_prefix("/images").expect("in the mount")
        }
    };
    assert_eq!(call.mode, Some(IsolateMode::Run));
    let normal = |part| matches!(part, std::path::Component::Normal(_));
    let is_safe = below_mount.components().all(normal) && !below_mount.as_os_str().is_empty();
    assert!(is_safe, "{} escapes the mount", below_mount.display());
    for version in [IsolateVersion::new(1, 8, 1), IsolateVersion::new(2, 6, 0)] {
        let Ok(rewrite) = CallRewrite::new(call, version) else { continue };
        let image = ["PATH=/image".to_owned(), "HOME".to_owned(), "X=\0".to_owned()];
        let environment = rewrite.environment(&image, &["PATH".to_owned()], Some("/box"));
        let additional = rewrite.additional_rules().to_vec();
        let Ok(arguments) = rewrite.arguments(Path::new("/run/root"), true, &additional, &environment, None)
        else {
            continue;
        };
        let rewritten = IsolateCall::parse(&arguments, Some(version), false)
            .expect("isolate can parse the rewritten call");
        check_rewritten(call, &rewritten, version);
    }
}

/// Compares the arguments for isolate with the caller's.
fn check_rewritten(call: &IsolateCall, rewritten: &IsolateCall, version: IsolateVersion) {
    let rules: Vec<DirRule> = rewritten
        .values(IsolateOption::Dir)
        .map(|text| DirRule::parse(text).expect("our rules parse"))
        .collect();
    let first = rules.first().map(|rule| rule.to_value().unwrap());
    assert_eq!(first, Some(".=/run/root:rw".into()), "the first rule is not the root");
    assert!(rules[1..].iter().all(|rule| !is_root(&rule.inside)), "a second root: {rules:?}");
    let texts: HashSet<&OsStr> = rules.iter().map(|rule| rule.inside.as_os_str()).collect();
    assert_eq!(
        texts.len(),
        rules.len(),
        "two rules for one directory: isolate would apply only the later one"
    );
    assert!(rewritten.has(IsolateOption::NoDefaultDirs) && rewritten.mode == Some(IsolateMode::Run));
    assert_eq!(rewritten.arguments, call.arguments, "the command differs from the caller's");
    let variables: Vec<&OsStr> = rewritten.values(IsolateOption::Env).collect();
    let last =
        |name: &str| variables.iter().rfind(|pair| pair.as_bytes().starts_with(name.as_bytes())).copied();
    assert_eq!(last("PATH="), Some(OsStr::new("PATH=/image")), "the image's PATH is not last");
    assert_eq!(last("X=\0"), None, "a malformed pair of the image is passed on");
    assert!(
        variables.iter().any(|pair| pair.as_bytes().starts_with(b"HOME")),
        "nobody sets HOME: {variables:?}"
    );
    assert!(variables.iter().all(|pair| !pair.as_bytes().starts_with(b"RCX_IMAGEFS_IMAGE=")));
    let kept = |call: &IsolateCall| {
        let is_kept = |option| match option {
            IsolateOption::Dir | IsolateOption::Env | IsolateOption::NoDefaultDirs => false,
            IsolateOption::CgTiming => IsolateOption::CgTiming.is_known_to(version),
            _ => true,
        };
        call.options.iter().filter(|given| is_kept(given.option)).cloned().collect::<Vec<_>>()
    };
    assert_eq!(kept(rewritten), kept(call), "one of the caller's options is missing or changed");
}
