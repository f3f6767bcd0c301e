//! Attempts of images, in front of an unmodified worker's isolate.

use std::fs;

use super::host::{Host, SandboxBox, isolates, said, succeeded};
use support::canary::{Canary, SECRET};
use support::escape::{self, Aim, LOOK_AROUND};
use support::text;

/// Makes an image and has the next runs in it.
fn take(host: &mut Host, image: &support::case::Case) {
    host.name = text::load(&host.program, image);
    host.image = host.program.ok(&["path", "--no-colon", &host.name]);
}

#[test]
#[ignore = "needs isolate on PATH"]
fn escape_attempts_in_an_image_reach_nothing_of_the_host() {
    for isolate in isolates() {
        let mut host = Host::with_isolate(isolate);
        let sandbox = SandboxBox::new(&host.isolate);
        let canaries = [Canary::in_directory(host.program.dir()), Canary::new()];
        let aim = Aim { near: canaries[0].name(), far: canaries[1].path() };
        // With a canary handed to it, the same script finds and changes what it can.
        let given = Canary::new();
        take(
            &mut host,
            &text::image("given", [vec![text::small()], text::layers("d mnt \n l out /mnt")].concat()),
        );
        let rule = format!("--dir=mnt={}:rw", given.path());
        let out = host.run(&sandbox, &[&rule], LOOK_AROUND);
        assert!(out.contains(SECRET) && out.ends_with("looked around\n"), "{out}");
        assert!(fs::exists(format!("{}/planted", given.path())).unwrap(), "{out}");

        for attempt in escape::about_the_sandbox() {
            take(&mut host, &attempt.image_with_programs(aim));
            let arguments = host.run_arguments(&sandbox, &["--wall-time=60"], LOOK_AROUND);
            let output = host.isolate().args(arguments).output().unwrap();
            assert!(output.status.success(), "{}: {}", attempt.name, said(&output));
            let out = succeeded(&output);
            assert!(out.ends_with("looked around\n"), "{}: {out}", attempt.name);
            assert!(!out.contains(SECRET), "{} finds the host: {out}", attempt.name);
            for canary in &canaries {
                canary.assert_untouched(attempt.name);
            }
            host.is_clean();
        }
    }
}
