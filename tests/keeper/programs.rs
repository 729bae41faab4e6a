//! Programs that the keeper runs: output, cancelling, sessions that come and go, removal.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use patroni::keeper::protocol::{Ask, Kind, Living, Permission, Program, Role, StopMode, UnfencedReason};
use patroni::postgres::keeper_client::{KeeperClient, KeeperError, RunEnd};

use super::world::*;

fn shell(script: &str, slot: Option<&str>) -> Program {
    Program {
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        slot: slot.map(str::to_owned),
        stdin: Some("hello\n".into()),
        ..Program::default()
    }
}

#[test]
fn programs_stream_their_output_and_are_cancelled_with_all_their_children() {
    as_postgres("programs::programs_stream_their_output_and_are_cancelled_with_all_their_children", async |w| {
        let (client, _, _events) = w.session().await;
        let mut lines = Vec::new();
        let end = client
            .run(Kind::Tool, shell("cat; echo two >&2; exit 3", None), PATIENCE, |l| lines.push(l.to_owned()))
            .await
            .unwrap();
        lines.sort();
        assert_eq!((end.code, lines), (Some(3), vec!["hello".to_owned(), "two".to_owned()]));
        let mark = w.dir.path().join("alive");
        let script = format!("(while :; do touch {0}; sleep 0.02; done) & wait", mark.display());
        let running = {
            let (client, program) = (client.clone(), shell(&script, Some("callback")));
            tokio::spawn(async move { client.run(Kind::Callback, program, PATIENCE, |_| {}).await })
        };
        while !mark.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let next = client.run(Kind::Callback, shell("true", Some("callback")), PATIENCE, |_| {}).await.unwrap();
        assert_eq!(next.code, Some(0));
        let first = running.await.unwrap().unwrap();
        assert_eq!(first.code, None, "the running program of the slot is killed");
        fs::remove_file(&mark).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!mark.exists(), "a child of a killed program lives on");
        client.command(Ask::Stop { mode: StopMode::Fast }).await.unwrap_err();
    });
}

type Running = tokio::task::JoinHandle<Result<RunEnd, KeeperError>>;

/// Begins a program that touches `mark` again and again, in a child of a child, and returns when it has.
async fn touching(w: &World, client: &KeeperClient, kind: Kind, mark: &str) -> Running {
    let mark = w.dir.path().join(mark);
    let script = format!("(while :; do touch {0}; sleep 0.02; done) & wait", mark.display());
    let client = client.clone();
    let running = tokio::spawn(async move { client.run(kind, shell(&script, None), PATIENCE, |_| {}).await });
    while !mark.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running
}

/// Is it still being touched?
async fn touched(w: &World, mark: &str) -> bool {
    let mark = w.dir.path().join(mark);
    fs::remove_file(&mark).unwrap();
    let began = now();
    // One that lives under load gets seconds; one that is dead costs half of one.
    while !mark.exists() && now() < began + SECOND / 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    mark.exists()
}

#[test]
fn a_newer_session_ends_a_fill_and_adopts_a_rewind() {
    as_postgres("programs::a_newer_session_ends_a_fill_and_adopts_a_rewind", async |w| {
        let (old, _, _events) = w.session().await;
        let lost = [touching(&w, &old, Kind::Fill, "fill").await, touching(&w, &old, Kind::Callback, "callback").await];
        let (new, state, mut events) = w.session().await;
        let living = |run, kind, ending| Living { run, kind, ending };
        assert_eq!(state.programs, [living(1, Kind::Fill, true), living(2, Kind::Callback, false)]);
        new.command(permit(Permission::Unfenced { reason: UnfencedReason::Bootstrap })).await.unwrap();
        new.command(w.start(Role::Primary, 0)).await.unwrap();
        assert!(!touched(&w, "fill").await, "Postgres was started beside a living pg_basebackup");
        assert!(touched(&w, "callback").await, "a callback outlives its session");
        for each in lost {
            assert!(matches!(each.await.unwrap(), Err(KeeperError::Unreachable(_))));
        }
        let end = new.run(Kind::Tool, shell("true", None), PATIENCE, |_| {}).await.unwrap();
        assert_eq!(end.code, Some(0), "numbered behind those of the older session");
        new.command(Ask::Cancel { run: 2 }).await.unwrap();
        new.command(Ask::Stop { mode: StopMode::Fast }).await.unwrap();
        exited(&mut events).await;

        let go = w.dir.path().join("go");
        let begun = w.dir.path().join("begun");
        let script = format!(
            "touch {}; while ! test -e {}; do sleep 0.02; done; echo rewound; exit 3",
            begun.display(),
            go.display()
        );
        let (client, program) = (new.clone(), shell(&script, None));
        let lost = tokio::spawn(async move { client.run(Kind::Rewind, program, PATIENCE, |_| {}).await });
        while !begun.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (newest, state, _events) = w.session().await;
        let rewind = state.programs.iter().find(|p| p.kind == Kind::Rewind).unwrap().run;
        assert!(lost.await.unwrap().is_err());
        let refused = newest.command(w.start(Role::Primary, 0)).await;
        assert!(matches!(refused, Err(KeeperError::Busy(_))), "{refused:?}");
        fs::write(go, "").unwrap();
        let end = newest.adopt(rewind, PATIENCE, |_| {}).await.unwrap();
        assert_eq!((end.code, end.output.as_str()), (Some(3), "rewound"));
    });
}

#[test]
fn a_program_that_prints_without_end_keeps_nobody_from_being_answered() {
    as_postgres("programs::a_program_that_prints_without_end_keeps_nobody_from_being_answered", async |w| {
        let (client, _, mut events) = w.session().await;
        let noisy = {
            let client = client.clone();
            tokio::spawn(async move {
                let endless = shell("while :; do echo 0123456789012345678901234567890123456789; done", None);
                // The reader is slow as well.
                client.run(Kind::Callback, endless, PATIENCE, |_| std::thread::sleep(Duration::from_micros(100))).await
            })
        };
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            client.command(Ask::Status).await.unwrap();
        }
        noisy.abort();
        assert!(noisy.await.unwrap_err().is_cancelled());
        client.command(Ask::Status).await.unwrap();
        assert!(events.try_recv().is_err(), "the session was lost");
    });
}

#[test]
fn a_removal_is_a_program_and_takes_what_its_links_lead_to() {
    as_postgres("programs::a_removal_is_a_program_and_takes_what_its_links_lead_to", async |w| {
        let (client, _, _events) = w.session().await;
        let (data, wal) = (w.dir.path().join("data"), w.dir.path().join("wal"));
        fs::rename(data.join("pg_wal"), &wal).unwrap();
        symlink(&wal, data.join("pg_wal")).unwrap();
        let argv = vec![w.data()];
        let program = Program { argv: argv.clone(), data_dir: Some(w.data()), ..Program::default() };
        let end = client.run(Kind::Removal, program, PATIENCE, |_| {}).await.unwrap();
        assert_eq!(end.code, Some(0), "{end:?}");
        assert!(!data.exists() && !wal.exists());
        let nothing = client.run(Kind::Removal, Program::default(), PATIENCE, |_| {}).await;
        assert!(matches!(nothing, Err(KeeperError::Refused(_))), "{nothing:?}");
    });
}
