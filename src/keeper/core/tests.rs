//! The core, fed by hand: no process, no file, no clock.

mod deadman;

use super::*;
use crate::keeper::protocol::{
    Answer, Ask, Frame, Kind, NotStarted, PROTOCOL, Program, Refusal, Role, State, StopMode, UnfencedReason,
};

/// A core, its clock, and what it put out that nobody has looked at.
struct World {
    core: Core,
    now: u64,
    out: Vec<Out>,
    ids: u64,
    /// What wardens were told, in order. They do it at once, unless they are stuck.
    armed: Vec<Option<u64>>,
    stuck: bool,
}

const UNFENCED: Permission = Permission::Unfenced { reason: UnfencedReason::Bootstrap };
const PID: i32 = 100;
const WARDEN: i32 = 99;

impl World {
    /// A keeper that began at second 1, with a session on connection 1.
    fn new() -> World {
        let config = Config {
            boot_id: "boot".into(),
            version: "v".into(),
            pid: 7,
            grace: 30 * SECOND,
            exit_when_idle: true,
            least_left: 2 * SECOND,
            deadman: Some(SECOND / 2),
        };
        let core = Core::new(config, SECOND);
        let mut w = World { core, now: SECOND, out: Vec::new(), ids: 0, armed: Vec::new(), stuck: false };
        w.hello(1);
        w
    }

    fn feed(&mut self, input: In) -> &mut World {
        for out in self.core.step(input, self.now) {
            if let Out::Arm { warden, at } = out {
                self.armed.push(at);
                self.armed_as_told(warden, at);
            } else {
                self.out.push(out);
            }
        }
        self
    }

    fn armed_as_told(&mut self, warden: i32, at: Option<u64>) {
        if !self.stuck {
            self.feed(In::Armed { warden, at });
        }
    }

    /// The postmaster has ended: its warden lets go of it, and both are reaped.
    fn ended(&mut self, end: End) -> &mut World {
        self.feed(In::Ended { pid: PID });
        self.feed(In::Reaped { pid: WARDEN, end: End::Code(0) });
        self.feed(In::Reaped { pid: PID, end })
    }

    fn ask(&mut self, conn: Conn, ask: Ask) -> Option<Answer> {
        self.ids += 1;
        let id = self.ids;
        self.feed(In::Request { conn, id, ask });
        self.answer(id)
    }

    fn frames(&self) -> impl Iterator<Item = Frame> {
        self.out.iter().filter_map(|o| if let Out::Send { frame, .. } = o { Some(frame.clone()) } else { None })
    }

    fn answer(&self, asked: u64) -> Option<Answer> {
        self.frames().find_map(|f| match f {
            Frame::Reply { id, answer } => (id == asked).then_some(answer),
            Frame::Event(_) => None,
        })
    }

    fn hello(&mut self, conn: Conn) -> State {
        self.feed(In::Opened(conn));
        let hello = Ask::Hello { protocol: PROTOCOL, boot_id: "boot".into(), client: "test".into() };
        match self.ask(conn, hello) {
            Some(Answer::State(state)) => *state,
            other => panic!("{other:?}"),
        }
    }

    fn permit(&mut self, permission: Permission) -> Option<Answer> {
        let evidence = self.now;
        self.ask(1, Ask::Permit { permission, evidence, note: "note".into() })
    }

    /// Two seconds between stop and kill.
    fn writer(&mut self, stop_in: u64) -> Option<Answer> {
        let stop_at = self.now + stop_in * SECOND;
        self.permit(Permission::Writer { stop_at, kill_at: stop_at + 2 * SECOND })
    }

    fn start(&mut self, role: Role, renewal: u64) -> Option<Answer> {
        let (program, data_dir) = (Program::default(), "/data".to_owned());
        self.ask(1, Ask::Start { role, program, data_dir, renewal, socket_locks: Vec::new() })
    }

    fn run(&mut self, conn: Conn, run: u64, kind: Kind) -> Option<Answer> {
        self.ask(conn, Ask::Run { run, kind, program: Program::default() })
    }

    /// Answers every spawn: the postmaster is process 100, its warden 99, run N is process 1000 + N.
    fn spawn(&mut self) -> &mut World {
        for out in std::mem::take(&mut self.out) {
            if let Out::Spawn { ticket, what } = out {
                match what {
                    Spawn::Postmaster { deadman, .. } => {
                        self.feed(In::Warded { ticket, warden: WARDEN });
                        self.armed.push(deadman);
                        self.armed_as_told(WARDEN, deadman);
                        self.feed(In::Started { ticket, result: Ok(Started { pid: PID, hears: true }) });
                    }
                    Spawn::Program { run, .. } => {
                        self.feed(In::Spawned { ticket, result: Ok(1000 + i32::try_from(run).unwrap()) });
                    }
                }
            } else {
                self.out.push(out);
            }
        }
        self
    }

    fn up(role: Role) -> World {
        let mut w = World::new();
        if role == Role::Primary {
            w.permit(UNFENCED);
        }
        w.start(role, 0);
        w.spawn();
        w.out.clear();
        w
    }

    fn at(&mut self, second: u64) -> &mut World {
        self.now = second * SECOND;
        self
    }

    fn facts(&mut self, control: ControlState, standby_signal: bool) -> &mut World {
        let at = self.now;
        self.feed(In::Facts(Facts { at, control, standby_signal }))
    }

    fn left(&mut self, orphans: bool, runs: &[u64]) -> &mut World {
        let runs = runs.iter().copied().collect();
        self.feed(In::Left { orphans, runs })
    }

    fn kills(&mut self) -> Vec<(Target, StopMode)> {
        let out = std::mem::take(&mut self.out);
        out.iter()
            .filter_map(|o| if let Out::Kill { target, mode } = o { Some((*target, *mode)) } else { None })
            .collect()
    }

    fn events(&self) -> Vec<Event> {
        let event = |f| match f {
            Frame::Event(event) => Some(event),
            Frame::Reply { .. } => None,
        };
        self.frames().filter_map(event).collect()
    }

    fn spawns(&self) -> usize {
        self.out.iter().filter(|o| matches!(o, Out::Spawn { .. })).count()
    }
}

fn class(answer: Option<Answer>) -> Refusal {
    match answer {
        Some(Answer::Refused { class, .. }) => class,
        other => panic!("not refused: {other:?}"),
    }
}

const STOPPED: (Target, StopMode) = (Target::Tree(PID), StopMode::Immediate);

#[test]
fn a_writer_needs_a_permission_with_time_left_and_a_renewal_after_the_last_death() {
    let mut w = World::new();
    assert_eq!(class(w.start(Role::Primary, 0)), Refusal::NotPermitted);
    w.at(10).writer(1);
    assert_eq!(class(w.start(Role::Primary, 10 * SECOND)), Refusal::NotPermitted, "a second is too little");
    w.at(11).writer(20);
    assert_eq!(class(w.start(Role::Primary, SECOND)), Refusal::NotPermitted, "a renewal of before the keeper began");
    assert_eq!(w.start(Role::Primary, 11 * SECOND), None);
    w.spawn().ended(End::Code(1));
    w.at(12).left(false, &[]);
    assert_eq!(class(w.start(Role::Primary, 12 * SECOND)), Refusal::NotPermitted, "a renewal of before the death");
    assert_eq!(w.start(Role::Primary, 12 * SECOND + 1), None);
}

#[test]
fn only_newer_evidence_replaces_a_permission_and_none_is_not_undone() {
    let mut w = World::new();
    assert_eq!(w.at(10).writer(20), Some(Answer::Done));
    let stale = Ask::Permit { permission: UNFENCED, evidence: 9 * SECOND, note: String::new() };
    assert_eq!(class(w.ask(1, stale)), Refusal::NotPermitted);
    assert_eq!(w.at(11).permit(Permission::None), Some(Answer::Done));
    let same = Ask::Permit { permission: UNFENCED, evidence: 11 * SECOND, note: String::new() };
    assert_eq!(class(w.ask(1, same)), Refusal::NotPermitted);
    assert_eq!(w.at(12).writer(20), Some(Answer::Done));
}

#[test]
fn deadlines_are_judged_before_what_comes_in_and_without_any_fact() {
    let mut w = World::up(Role::Primary);
    w.at(10).writer(20);
    w.out.clear();
    assert!(w.core.wake(w.now) <= 11 * SECOND);
    w.at(30).feed(In::Due);
    assert_eq!(w.kills(), [STOPPED], "no look was ever answered");
    // The renewal is late: the kill stands before its answer.
    w.at(32).writer(20);
    assert!(matches!(w.out[0], Out::Kill { target: Target::Tree(PID), mode: StopMode::Kill }), "{:?}", w.out);
    assert!(matches!(w.out.last(), Some(Out::Say(Level::Error, _))), "the log comes last");
}

#[test]
fn a_kill_is_repeated_until_reaped_but_told_once_in_five_seconds() {
    let mut w = World::up(Role::Primary);
    w.at(10).permit(Permission::None);
    w.at(12).feed(In::Due);
    w.out.clear();
    let (mut kills, mut told, mut said) = (0, 0, 0);
    for _ in 0..600 {
        w.now = w.core.wake(w.now);
        w.feed(In::Due);
        told += w.events().len();
        said += w.out.iter().filter(|o| matches!(o, Out::Say(..))).count();
        kills += w.kills().len();
    }
    assert_eq!((kills, told, said), (600, 1, 1), "six seconds of a process in state D");
}

#[test]
fn a_standby_is_a_writer_when_it_left_recovery_and_old_facts_count_only_beside_a_permission() {
    let mut w = World::up(Role::Standby);
    w.at(2).facts(ControlState::InRecovery, true);
    w.at(60).feed(In::Due);
    assert_eq!(w.kills(), [], "the volume hangs, but nobody could promote it");
    w.writer(20);
    w.at(79).feed(In::Due);
    assert_eq!(w.kills(), []);
    w.at(80).feed(In::Due);
    assert_eq!(w.kills(), [STOPPED], "a permission stood, and nothing proves that it was not used");

    let mut w = World::up(Role::Standby);
    w.at(2).facts(ControlState::InRecovery, true);
    w.at(3).writer(20);
    w.at(22).facts(ControlState::InRecovery, true);
    w.at(24).feed(In::Due);
    assert_eq!(w.kills(), [], "seen in recovery since");
    w.permit(Permission::None);
    w.facts(ControlState::Other, false);
    assert_eq!(w.kills(), [STOPPED], "promoted by hand");
}

#[test]
fn facts_of_an_earlier_life_prove_nothing() {
    let mut w = World::up(Role::Standby);
    w.at(5).feed(In::Facts(Facts { at: SECOND / 2, control: ControlState::InRecovery, standby_signal: false }));
    w.facts(ControlState::Other, true);
    assert_eq!(w.kills(), [], "recovery has not begun, standby.signal is there");
    w.facts(ControlState::Other, false);
    assert_eq!(w.kills(), [STOPPED]);
}

#[test]
fn a_promotion_waits_for_its_file_and_looks_at_the_permission_again() {
    let mut w = World::up(Role::Standby);
    assert_eq!(class(w.ask(1, Ask::Promote { renewal: w.now })), Refusal::NotPermitted);
    w.at(10).writer(20);
    assert_eq!(w.ask(1, Ask::Promote { renewal: 10 * SECOND }), None);
    let ticket = |w: &World| {
        w.out.iter().find_map(|o| if let Out::WritePromote { ticket, .. } = o { Some(*ticket) } else { None })
    };
    let first = ticket(&w).unwrap();
    w.out.clear();
    w.at(11).feed(In::PromoteWritten { ticket: first, result: Ok(()) });
    assert!(w.out.contains(&Out::LookForPromote(PID)));

    let mut w = World::up(Role::Standby);
    w.at(10).writer(20);
    w.ask(1, Ask::Promote { renewal: 10 * SECOND });
    let first = ticket(&w).unwrap();
    w.at(31).feed(In::PromoteWritten { ticket: first, result: Ok(()) });
    assert!(!w.out.contains(&Out::LookForPromote(PID)));
    assert_eq!(w.kills(), [STOPPED], "the file may have been found");
}

#[test]
fn dead_means_that_every_descendant_is_reaped() {
    let mut w = World::up(Role::Primary);
    w.at(5).ended(End::Signal(9));
    assert!(w.out.contains(&Out::LookLeft) && w.events().is_empty());
    w.out.clear();
    w.left(true, &[]);
    assert_eq!(w.kills(), [(Target::Orphans, StopMode::Kill)]);
    assert_eq!(class(w.start(Role::Primary, w.now)), Refusal::Running);
    assert_eq!(w.core.wake(w.now), 5 * SECOND + DYING_LOOK);
    w.at(6).left(false, &[]);
    assert_eq!(w.events(), [Event::Exited { how: "killed by signal 9".into(), at: 6 * SECOND }]);
    assert_eq!(w.start(Role::Primary, 7 * SECOND), None);
}

#[test]
fn what_a_clean_stop_leaves_gets_a_moment() {
    let mut w = World::up(Role::Primary);
    w.at(5).ended(End::Code(0));
    w.left(true, &[]);
    assert_eq!(w.kills(), []);
    w.at(6).left(true, &[]);
    assert_eq!(w.kills(), [(Target::Orphans, StopMode::Kill)]);
}

#[test]
fn one_postmaster_at_a_time_also_while_it_is_being_started() {
    let mut w = World::new();
    w.permit(UNFENCED);
    assert_eq!(w.start(Role::Primary, 0), None);
    assert_eq!(class(w.start(Role::Primary, 0)), Refusal::Running);
    let Some(Out::Spawn { ticket, .. }) = w.out.iter().find(|o| matches!(o, Out::Spawn { .. })).cloned() else {
        panic!()
    };
    w.feed(In::Started { ticket, result: Err("no such file".to_owned().into()) });
    assert_eq!(w.start(Role::Primary, 0), None);
}

#[test]
fn a_directory_that_others_hold_is_refused_by_that_name() {
    let mut w = World::new();
    w.permit(UNFENCED);
    assert_eq!(w.start(Role::Primary, 0), None);
    let asked = w.ids;
    let Some(Out::Spawn { ticket, .. }) = w.out.iter().find(|o| matches!(o, Out::Spawn { .. })).cloned() else {
        panic!()
    };
    let in_use = NotStarted { why: "held".to_owned(), class: Refusal::InUse };
    w.feed(In::Started { ticket, result: Err(in_use) });
    assert_eq!(w.answer(asked), Some(Answer::Refused { why: "held".to_owned(), class: Refusal::InUse }));
}

#[test]
fn the_newest_hello_is_the_session_and_what_older_ones_still_ask_is_dropped() {
    let mut w = World::up(Role::Primary);
    let state = w.hello(2);
    assert_eq!((state.note.as_str(), state.permission), ("note", UNFENCED));
    assert!(w.out.contains(&Out::Close(1)));
    w.out.clear();
    assert_eq!(w.ask(1, Ask::Stop { mode: StopMode::Immediate }), None);
    assert_eq!(w.out, []);
    w.feed(In::Opened(3));
    assert_eq!(class(w.ask(3, Ask::Status)), Refusal::Other, "hello comes first");
    let old = Ask::Hello { protocol: PROTOCOL + 2, boot_id: "boot".into(), client: String::new() };
    assert_eq!(class(w.ask(3, old)), Refusal::Other);
    assert_eq!(w.core.session(), Some(2));
}

#[test]
fn a_crowd_of_connections_does_not_lock_the_sidecar_out() {
    let mut w = World::new();
    for conn in 2..20 {
        w.feed(In::Opened(conn));
    }
    assert!(!w.out.contains(&Out::Close(1)) && w.out.contains(&Out::Close(2)));
    w.hello(20);
}

#[test]
fn a_newer_session_ends_programs_but_callbacks_rewinds_and_restores() {
    for (kind, lives) in [
        (Kind::Callback, true),
        (Kind::Rewind, true),
        (Kind::Restore, true),
        (Kind::Fill, false),
        (Kind::Removal, false),
        (Kind::Tool, false),
    ] {
        let mut w = World::new();
        w.run(1, 1, kind);
        w.spawn().out.clear();
        let state = w.hello(2);
        assert_eq!(state.next_run, 2);
        assert_eq!(state.programs.iter().map(|p| (p.kind, p.ending)).collect::<Vec<_>>(), [(kind, !lives)]);
        let expected = [(Target::Run { run: 1, pid: 1001 }, StopMode::Kill)];
        assert_eq!(w.kills(), if lives { &[][..] } else { &expected[..] }, "{kind:?}");
    }
}

#[test]
fn start_and_fill_wait_until_the_programs_of_the_older_session_are_reaped_with_their_trees() {
    let mut w = World::new();
    w.run(1, 1, Kind::Fill);
    w.spawn();
    w.hello(2);
    w.out.clear();
    let evidence = w.now;
    let permitted = w.ask(2, Ask::Permit { permission: UNFENCED, evidence, note: String::new() });
    assert_eq!(permitted, Some(Answer::Done), "permits work at once");
    assert_eq!(w.run(2, 2, Kind::Fill), None);
    let filling = w.ids;
    w.feed(In::Reaped { pid: 1001, end: End::Signal(9) });
    assert_eq!(w.spawns(), 0, "a child of it may be left");
    w.now += DYING_LOOK;
    w.left(false, &[1]);
    assert_eq!(w.spawns(), 0);
    w.left(false, &[]);
    assert_eq!(w.spawns(), 1);
    w.spawn();
    assert_eq!(w.answer(filling), Some(Answer::Done));
    w.feed(In::Drained { run: 1 });
    assert!(w.events().contains(&Event::Finished { run: 1, code: None, how: "killed by signal 9".into() }));
}

#[test]
fn what_waited_too_long_is_refused_and_never_done_later() {
    let mut w = World::new();
    w.run(1, 1, Kind::Fill);
    w.spawn();
    w.ask(1, Ask::Cancel { run: 1 });
    w.out.clear();
    assert_eq!(w.start(Role::Standby, 0), None);
    let start = w.ids;
    while w.answer(start).is_none() {
        w.now = w.core.wake(w.now);
        w.feed(In::Due);
        assert!(w.now < 4 * SECOND);
    }
    assert_eq!(class(w.answer(start)), Refusal::Busy);
    w.feed(In::Reaped { pid: 1001, end: End::Signal(9) }).left(false, &[]);
    assert_eq!(w.spawns(), 0);
}

#[test]
fn a_start_that_waits_goes_with_its_session_and_with_a_stop() {
    for stop in [true, false] {
        let mut w = World::new();
        w.run(1, 1, Kind::Fill);
        w.spawn();
        w.ask(1, Ask::Cancel { run: 1 });
        assert_eq!(w.start(Role::Standby, 0), None);
        if stop {
            w.ask(1, Ask::Stop { mode: StopMode::Fast });
        } else {
            w.hello(2);
        }
        w.feed(In::Reaped { pid: 1001, end: End::Signal(9) }).left(false, &[]);
        assert_eq!(w.spawns(), 0);
    }
}

#[test]
fn run_ids_are_used_once() {
    let mut w = World::new();
    w.run(1, 5, Kind::Tool);
    assert_eq!(class(w.run(1, 5, Kind::Tool)), Refusal::Other);
    assert_eq!(class(w.run(1, 4, Kind::Tool)), Refusal::Other);
    let state = w.hello(2);
    assert_eq!(state.next_run, 6);
    assert_eq!(w.run(2, 6, Kind::Tool), None, "begun");
}

#[test]
fn nothing_changes_a_data_directory_beside_a_postmaster_or_beside_another_program_that_does() {
    let mut w = World::up(Role::Standby);
    for (run, kind) in [(1, Kind::Fill), (2, Kind::Removal), (3, Kind::Rewind), (4, Kind::Restore)] {
        assert_eq!(class(w.run(1, run, kind)), Refusal::Running, "{kind:?}");
    }
    assert_eq!(w.run(1, 5, Kind::Tool), None);
    let mut w = World::new();
    assert_eq!(w.run(1, 1, Kind::Rewind), None);
    assert_eq!(class(w.run(1, 2, Kind::Fill)), Refusal::Busy);
    assert_eq!(class(w.start(Role::Standby, 0)), Refusal::Busy);
}

#[test]
fn a_program_in_a_slot_ends_the_one_before() {
    let mut w = World::new();
    let program = || Program { slot: Some("callback".into()), ..Program::default() };
    w.ask(1, Ask::Run { run: 1, kind: Kind::Callback, program: program() });
    w.spawn().out.clear();
    w.ask(1, Ask::Run { run: 2, kind: Kind::Callback, program: program() });
    assert_eq!(w.spawns(), 1);
    assert_eq!(w.kills(), [(Target::Run { run: 1, pid: 1001 }, StopMode::Kill)]);
}

#[test]
fn sigterm_waits_for_a_sidecar_that_hands_over_and_for_nobody_else() {
    let mut w = World::up(Role::Primary);
    w.at(5).feed(In::Terminate);
    assert_eq!(w.events(), [Event::Terminating { deadline: 35 * SECOND }]);
    w.ask(1, Ask::Status);
    w.at(8).feed(In::Due);
    assert_eq!(w.kills(), []);
    w.feed(In::Closed(1));
    w.at(9).feed(In::Due);
    assert_eq!(w.kills(), [(Target::Postmaster(PID), StopMode::Fast)]);
    w.ended(End::Code(0)).left(false, &[]);
    assert!(w.out.contains(&Out::Leave));
}

#[test]
fn an_idle_keeper_leaves_and_one_with_a_session_stays() {
    let mut w = World::new();
    w.at(1000).feed(In::Due);
    assert!(!w.out.contains(&Out::Leave));
    w.feed(In::Closed(1));
    assert_eq!(w.core.wake(w.now), 1060 * SECOND);
    w.at(1060).feed(In::Due);
    assert!(w.out.contains(&Out::Leave));
}
