//! A builder that is killed.

use support::child::{Server, wait_until};

use super::BuildFixture;

#[test]
fn killed_builder_leaves_no_process_and_the_next_one_builds_its_revision() {
    let build = BuildFixture::new();
    let log = build.fixture.program.dir().join("builder.log");
    build.approve("RUN echo started && sleep 4 && echo done > /done\n", &[]);
    let mut builder = Server::start(&build.command(&["env@1"]), &log);
    let running = build.queue().join(".queue/build/env@1/build.log");
    wait_until("the command of the build runs", || {
        std::fs::read_to_string(&running).is_ok_and(|log| log.contains("\nstarted\n"))
    });
    assert_eq!(build.state(1), "building");
    builder.signal("KILL");
    assert!(!builder.wait().success());
    wait_until("all processes of the build have ended", || build.processes().is_empty());
    assert_eq!(build.state(1), "approved");
    assert!(running.exists());
    let printed = build.build();
    assert!(printed.starts_with("published env@1 as "), "{printed}");
}
