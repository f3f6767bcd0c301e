//! Escape attempts in images, run by the stand-in the way an unmodified worker calls it.

use std::fs;

use super::host::{Host, SandboxBox, all_isolates, describe, stdout_of};
use support::canary::{Canary, SECRET};
use support::escape::{self, Aim, LOOK_AROUND};
use support::text;

/// Loads an image and makes it the image of the next runs.
fn use_image(host: &mut Host, image: &support::case::Case) {
    host.name = text::load(&host.program, image);
    host.image = host.program.ok(&["path", "--no-colon", &host.name]);
}

#[test]
#[ignore = "needs isolate on PATH"]
fn escape_attempts_in_an_image_reach_nothing_of_the_host() {
    for isolate in all_isolates() {
        let mut host = Host::with_isolate(isolate);
        let sandbox = SandboxBox::new(&host.isolate);
        let canaries = [Canary::in_directory(host.program.dir()), Canary::new()];
        let aim = Aim { near: canaries[0].name(), far: canaries[1].path() };
        // Control: with a canary mounted into the box, the same script finds and changes it.
        let exposed = Canary::new();
        use_image(
            &mut host,
            &text::image("exposed", [vec![text::small()], text::layers("d mnt \n l out /mnt")].concat()),
        );
        let rule = format!("--dir=mnt={}:rw", exposed.path());
        let out = host.run(&sandbox, &[&rule], LOOK_AROUND);
        assert!(out.contains(SECRET) && out.ends_with("looked around\n"), "{out}");
        assert!(fs::exists(format!("{}/planted", exposed.path())).unwrap(), "{out}");

        for attempt in escape::about_the_sandbox() {
            use_image(&mut host, &attempt.image_with_programs(aim));
            let arguments = host.run_arguments(&sandbox, &["--wall-time=60"], LOOK_AROUND);
            let output = host.isolate().args(arguments).output().unwrap();
            assert!(output.status.success(), "{}: {}", attempt.name, describe(&output));
            let out = stdout_of(&output);
            assert!(out.ends_with("looked around\n"), "{}: {out}", attempt.name);
            assert!(!out.contains(SECRET), "{} reads a file of the host: {out}", attempt.name);
            for canary in &canaries {
                canary.assert_untouched(attempt.name);
            }
            host.assert_clean();
        }
    }
}
