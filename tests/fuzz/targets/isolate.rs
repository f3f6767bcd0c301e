//! The arguments of the stand-in for isolate, which is set-uid root and called by anyone; and isolate's meta file.
//!
//! Promises: arguments are read as `getopt_long` of glibc reads them, with isolate's table, to the letter; what was read,
//! written out, reads the same. A call made for an image has one rule for the root, ours and the first; names no place twice,
//! and keeps the caller's command, limits and variables. A message that fails a job is one line of the meta file, whatever
//! is in it.

use std::collections::HashSet;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use rcx_imagefs::sandbox::isolate::{
    DirRule, IsolateCall, IsolateError, IsolateMeta, IsolateMode, IsolateOption, IsolateVersion, components,
    failure_text, is_root,
};
use rcx_imagefs::sandbox::shim::{BoxImages, CallRewrite, ImageChoice, choose, may_request_image};

use crate::glibc::{self, Takes};
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

/// Options, as isolate's own table has them: name, letter, what they take.
const TABLE: [(&str, u8, Takes); 41] = {
    use Takes::{Maybe, Nothing, Value};
    [
        ("as-gid", 0, Value),
        ("as-uid", 0, Value),
        ("box-id", b'b', Value),
        ("cg", 0, Nothing),
        ("cg-mem", 0, Value),
        ("cg-timing", 0, Nothing),
        ("chdir", b'c', Value),
        ("check-config", 0, Nothing),
        ("cleanup", 0, Nothing),
        ("core", 0, Value),
        ("dir", b'd', Value),
        ("env", b'E', Value),
        ("extra-time", b'x', Value),
        ("fsize", b'f', Value),
        ("full-env", b'e', Nothing),
        ("inherit-fds", 0, Nothing),
        ("init", 0, Nothing),
        ("mem", b'm', Value),
        ("meta", b'M', Value),
        ("no-cg-timing", 0, Nothing),
        ("no-default-dirs", b'D', Nothing),
        ("open-files", b'n', Value),
        ("print-cg-root", 0, Nothing),
        ("processes", b'p', Maybe),
        ("quota", b'q', Value),
        ("run", 0, Nothing),
        ("share-net", 0, Nothing),
        ("silent", b's', Nothing),
        ("special-files", 0, Nothing),
        ("stack", b'k', Value),
        ("stderr", b'r', Value),
        ("stderr-to-stdout", 0, Nothing),
        ("stdin", b'i', Value),
        ("stdout", b'o', Value),
        ("syscalls", 0, Value),
        ("time", b't', Value),
        ("tty-hack", 0, Nothing),
        ("verbose", b'v', Nothing),
        ("version", 0, Nothing),
        ("wait", 0, Nothing),
        ("wall-time", b'w', Value),
    ]
};

/// See the module.
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
                // No argument has one.
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
        assert_eq!(DirRule::parse(&spelled).expect("a rule reads as it is spelled"), rule);
    }
}

/// An option's name and value.
type Read = (&'static str, Option<OsString>);

/// What isolate reads; `None` where it refuses.
fn by_glibc(words: &[OsString], in_order: bool) -> Option<(Vec<Read>, Vec<OsString>)> {
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
        let expected = by_glibc(words, in_order);
        match (&call, &expected) {
            (Ok(call), Some((options, arguments))) => {
                let read: Vec<Read> =
                    call.options.iter().map(|given| (given.option.name(), given.value.clone())).collect();
                assert_eq!((&read, &call.arguments), (options, arguments), "{words:?}");
            }
            (Err(error), None) => assert!(!error.to_string().is_empty()),
            _ => panic!("{words:?}: {call:?} and {expected:?}"),
        }
        if let Ok(call) = call {
            assert_eq!(
                IsolateCall::parse(&call.to_arguments(), None, in_order).unwrap(),
                call,
                "written out it is another"
            );
            call.values(IsolateOption::Dir).for_each(check_rule);
            check_plan(&call);
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

fn check_plan(call: &IsolateCall) {
    let images = BoxImages::new([("default", "d"), ("7", "s:1"), ("8", "")]).unwrap();
    let Ok(choice) = choose(call, &images, || Ok(Some("/images".into()))) else { return };
    let ImageChoice::Image { name, .. } = &choice else { return };
    assert_eq!(call.mode, Some(IsolateMode::Run));
    let normal = |part| matches!(part, std::path::Component::Normal(_));
    assert!(name.components().all(normal) && !name.as_os_str().is_empty(), "{name:?} leads out of the mount");
    for version in [IsolateVersion::new(1, 8, 1), IsolateVersion::new(2, 6, 0)] {
        let Ok(plan) = CallRewrite::new(call, version) else { continue };
        let environment = ["PATH=/image".to_owned(), "HOME".to_owned(), "X=\0".to_owned()];
        let additional = plan.additional_rules().to_vec();
        let Ok(arguments) = plan.arguments(Path::new("/run/root"), true, &additional, &environment, None)
        else {
            continue;
        };
        let made = IsolateCall::parse(&arguments, Some(version), false).expect("it is for isolate to read");
        check_made(call, &made, version);
    }
}

/// What isolate gets, against what the caller gave.
fn check_made(call: &IsolateCall, made: &IsolateCall, version: IsolateVersion) {
    let rules: Vec<DirRule> =
        made.values(IsolateOption::Dir).map(|text| DirRule::parse(text).expect("ours")).collect();
    let first = rules.first().map(|rule| rule.to_value().unwrap());
    assert_eq!(first, Some(".=/run/root:rw".into()), "the root comes first");
    assert!(rules[1..].iter().all(|rule| !is_root(&rule.inside)), "a second root: {rules:?}");
    let texts: HashSet<&OsStr> = rules.iter().map(|rule| rule.inside.as_os_str()).collect();
    assert_eq!(texts.len(), rules.len(), "isolate would put the later rule in the place of the former");
    assert!(made.has(IsolateOption::NoDefaultDirs) && made.mode == Some(IsolateMode::Run));
    assert_eq!(made.arguments, call.arguments, "the command is the caller's");
    let variables: Vec<&OsStr> = made.values(IsolateOption::Env).collect();
    assert_eq!(variables.last(), Some(&OsStr::new("PATH=/image")), "the image's variables come last");
    assert!(variables.iter().all(|pair| !pair.as_bytes().starts_with(b"RCX_IMAGEFS_IMAGE=")));
    let kept = |call: &IsolateCall| {
        let stays = |option| match option {
            IsolateOption::Dir | IsolateOption::Env | IsolateOption::NoDefaultDirs => false,
            IsolateOption::CgTiming => IsolateOption::CgTiming.is_known_to(version),
            _ => true,
        };
        call.options.iter().filter(|given| stays(given.option)).cloned().collect::<Vec<_>>()
    };
    assert_eq!(kept(made), kept(call), "an option of the caller's has gone or changed");
}
