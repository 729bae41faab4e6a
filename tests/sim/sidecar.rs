//! A sidecar process: the shipping [`Member`] and [`Desk`], and a driver that only carries.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use patroni::dcs::desk::Desk;
use patroni::dcs::options::{Access, Mode, StoreOptions};
use patroni::dcs::{Feed, Life, Object, schema};
use patroni::keeper::protocol::{
    self, Answer as KeeperAnswer, Ask, Event as KeeperEvent, Frame, PROTOCOL, Refusal, State, UnfencedReason,
};
use patroni::kubemem;
use patroni::member::{Answer, Effect, Fail, Id, Identity, Input, Level, Member, News, Signal, Standing};
use patroni::model::{
    self, BootInstant, Fence, LeaseRecord, MemberName, Permission, StartRole, TaskOutcome, View, WallTime,
};

use super::api::{Asked, Following};
use super::failsafe::Round;
use super::keeper::ToKeeper;
use super::world::{Event, MS, Ns, SEC, World};

/// The client of the keeper gives an answer up after this time.
const KEEPER_DEADLINE: Ns = 2 * SEC;
/// Steps of one member within a second of virtual time; more is a busy loop.
const STEPS_MAX: u32 = 400;

/// What a request of the store is for.
#[derive(Clone, Debug)]
pub enum Why {
    ReadLeader(Id),
    ReadConfig(Id),
    WriteLeader(Id),
    ReadPod(Id),
    Store(Id, Object),
    /// Looks up what a write without a clear answer did; the answer is then this.
    LookedUp(Id, Answer),
    Publish(Id),
    Strip(Id, MemberName),
    List(Feed),
    Watch(Feed),
    MyPod,
    Nobody,
}

/// What a request to the keeper is for.
#[derive(Clone, Debug)]
pub enum AskedKeeper {
    Hello,
    /// Permit, stop, promote.
    Kept(Id),
    Start(Id),
    Begun(Id),
    /// A start was refused: what runs?
    Running(Id, String),
    Reload(Id),
    Run(Id, u64),
    Nobody,
}

/// What reaches a sidecar process.
pub enum ToSidecar {
    Wake,
    ApiAnswer {
        request: u64,
        status: u16,
        body: Arc<serde_json::Value>,
    },
    ApiSilent(u64),
    ApiBroken(u64),
    WatchEvent {
        feed: Feed,
        number: u64,
        event: kubemem::Event,
    },
    WatchSilent {
        feed: Feed,
        number: u64,
    },
    WatchBreaks,
    Follow {
        feed: Feed,
        number: u64,
    },
    Frame {
        conn: u64,
        frame: Frame,
    },
    KeeperClosed(u64),
    KeeperSilent(u64),
    /// Asked while there is no session.
    NoKeeper(AskedKeeper),
    Connect,
    Begin {
        sent: Box<patroni::member::Sent>,
    },
    /// A start whose files were written.
    Prepared {
        id: Id,
        role: StartRole,
        renewal: BootInstant,
    },
    Reply {
        id: Id,
        answer: Result<Answer, Fail>,
    },
    Ended(Id),
    /// Another dynamic document is in force.
    Configured(Arc<str>),
    Signal(Signal),
    AskMyPod,
}

/// One life of a sidecar.
pub struct Sidecar {
    pub life: u64,
    pub member: Option<Member>,
    pub desk: Desk,
    pub session: String,
    /// The connection to the keeper.
    pub conn: Option<u64>,
    /// It has had an answer of the server that runs.
    pub asked_postgres: bool,
    /// Its hello was answered: before, nothing else is sent.
    hello: bool,
    standing: Option<Standing>,
    /// News of the keeper that wait for the member to begin.
    early: Vec<News>,
    asks: u64,
    pub keeper_asked: BTreeMap<u64, AskedKeeper>,
    next_run: u64,
    pub runs: BTreeMap<u64, Id>,
    pub feeds: [Following; 2],
    pub requests_made: u64,
    pub asked: BTreeMap<u64, Asked>,
    pub strips: BTreeMap<Id, (usize, Vec<MemberName>)>,
    pub view: Option<Arc<View>>,
    pub frozen: Ns,
    mailbox: VecDeque<ToSidecar>,
    /// Effects that are under way and may be given up.
    pub running: BTreeMap<Id, BootInstant>,
    wake: Ns,
    woken: Ns,
    /// By its own word, in global time.
    pub leads_until: Ns,
    /// In maintenance mode since then, and out of it, as it was told.
    pub paused: Option<Ns>,
    /// Since when it takes the cluster for one that follows another.
    pub follows: Option<Ns>,
    /// Requests to be left the lock.
    pub rounds: BTreeMap<Id, Round>,
    pub resumed: Ns,
    steps: (Ns, u32),
    /// Requests within a second.
    pub rate: (Ns, u32),
    /// Writes that were refused to it: the second, and how many.
    pub refused: (u64, u32),
    pub began: Ns,
}

impl World {
    pub fn start_sidecar(&mut self, pod: usize) {
        let life = self.new_life(pod);
        self.pods[pod].started = self.t;
        let p = &self.pods[pod];
        let access = Access::Server { url: String::new(), token: None };
        let mut o = StoreOptions::new("demo", Some(p.name.clone()), access, BootInstant::default, WallTime::default);
        o.mode = if self.endpoints { Mode::Endpoints } else { Mode::ConfigMaps };
        o.labels = BTreeMap::from([("application".to_owned(), "patroni".to_owned())]);
        o.session = format!("s{pod}-{life}");
        let session = o.session.clone();
        let desk = Desk::new(o, self.boot(pod));
        self.pods[pod].sidecar = Some(Sidecar {
            life,
            member: None,
            desk,
            session,
            conn: None,
            asked_postgres: false,
            hello: false,
            standing: None,
            early: Vec::new(),
            asks: 0,
            keeper_asked: BTreeMap::new(),
            next_run: 0,
            runs: BTreeMap::new(),
            feeds: [Following::default(), Following::default()],
            requests_made: 0,
            asked: BTreeMap::new(),
            strips: BTreeMap::new(),
            view: None,
            frozen: 0,
            mailbox: VecDeque::new(),
            running: BTreeMap::new(),
            wake: u64::MAX,
            woken: u64::MAX,
            leads_until: 0,
            paused: None,
            follows: None,
            rounds: BTreeMap::new(),
            resumed: 0,
            steps: (0, 0),
            rate: (0, 0),
            refused: (0, 0),
            began: self.t,
        });
        self.note(format!("m{pod} sidecar starts"));
        self.connect(pod);
    }

    pub fn sidecar_gets(&mut self, pod: usize, delay: Ns, to: ToSidecar) {
        if let Some(life) = self.pods[pod].sidecar.as_ref().map(|s| s.life) {
            self.after(delay, Event::Sidecar { pod, life, to: Box::new(to) });
        }
    }
    pub fn reply_in(&mut self, pod: usize, delay: Ns, id: Id, answer: Result<Answer, Fail>) {
        self.sidecar_gets(pod, delay, ToSidecar::Reply { id, answer });
    }

    pub fn tell_sidecar(&mut self, pod: usize, life: u64, to: ToSidecar) {
        let t = self.t;
        let Some(s) = self.pods[pod].sidecar.as_mut().filter(|s| s.life == life) else { return };
        if t < s.frozen {
            s.mailbox.push_back(to);
            return;
        }
        self.sidecar_takes(pod, to);
    }

    pub fn sidecar_thaws(&mut self, pod: usize) {
        let t = self.t;
        let Some(s) = self.pods[pod].sidecar.as_mut().filter(|s| t >= s.frozen) else { return };
        let life = s.life;
        for to in std::mem::take(&mut s.mailbox) {
            self.tell_sidecar(pod, life, to);
        }
    }

    fn sidecar_takes(&mut self, pod: usize, to: ToSidecar) {
        match to {
            ToSidecar::Wake => self.wakes(pod),
            ToSidecar::ApiAnswer { request, status, body } => self.api_answered(pod, request, Ok((status, body))),
            ToSidecar::ApiSilent(request) => self.api_answered(pod, request, Err("no answer")),
            ToSidecar::ApiBroken(request) => self.api_answered(pod, request, Err("connection refused")),
            ToSidecar::WatchEvent { feed, number, event } => self.watch_event(pod, feed, number, &event),
            ToSidecar::WatchSilent { feed, number } => self.watch_silent(pod, feed, number),
            ToSidecar::WatchBreaks => self.watch_breaks(pod),
            ToSidecar::Follow { feed, number } => {
                if self.pods[pod].sidecar.as_ref().is_some_and(|s| s.feeds[feed as usize].number == number) {
                    self.follow(pod, feed);
                }
            }
            ToSidecar::Frame { conn, frame } => self.frame(pod, conn, frame),
            ToSidecar::KeeperClosed(conn) => self.keeper_closed(pod, conn),
            ToSidecar::KeeperSilent(ask) => {
                let Some(s) = &mut self.pods[pod].sidecar else { return };
                let (Some(asked), Some(conn)) = (s.keeper_asked.remove(&ask), s.conn) else { return };
                let hello = matches!(asked, AskedKeeper::Hello);
                self.over_socket(pod, ToKeeper::Closed(conn));
                self.keeper_answers(pod, asked, Err(Fail::Unreachable("no answer within 2 s".to_owned())));
                if !hello {
                    self.keeper_closed(pod, conn);
                }
            }
            ToSidecar::NoKeeper(about) => {
                let gone = Err(Fail::Unreachable("the connection ended".to_owned()));
                self.keeper_answers(pod, about, gone);
            }
            ToSidecar::Connect => self.connect(pod),
            ToSidecar::Begin { sent } => self.perform(pod, *sent),
            ToSidecar::Prepared { id, role, renewal } => self.ask_start(pod, id, role, renewal),
            ToSidecar::Reply { id, answer } => self.step(pod, Input::Reply { id, answer }),
            ToSidecar::Ended(id) => {
                if self.pods[pod].sidecar.as_ref().is_some_and(|s| s.running.contains_key(&id)) {
                    self.step(pod, Input::Ended(id));
                }
            }
            ToSidecar::Configured(document) => {
                let in_force = self.in_force(pod, &document);
                self.member_is_told(pod, &document);
                self.member_follows(pod, &document);
                self.step(pod, Input::Settings(in_force));
            }
            ToSidecar::Signal(signal) => self.step(pod, Input::Signal(signal)),
            ToSidecar::AskMyPod => self.store_is_there(pod),
        }
    }

    fn wakes(&mut self, pod: usize) {
        let t = self.t;
        let Some(s) = &mut self.pods[pod].sidecar else { return };
        if t < s.woken {
            // An earlier plan; the one that holds is still to come.
            return;
        }
        s.woken = u64::MAX;
        if t >= s.wake { self.step(pod, Input::Due) } else { self.plan_wake(pod) }
    }

    fn plan_wake(&mut self, pod: usize) {
        let Some(s) = &mut self.pods[pod].sidecar else { return };
        if s.wake < s.woken {
            s.woken = s.wake;
            let (life, at) = (s.life, s.wake);
            self.at(at, Event::Sidecar { pod, life, to: Box::new(ToSidecar::Wake) });
        }
    }

    /// One step of the member, and what it wants done.
    pub fn step(&mut self, pod: usize, input: Input) {
        let t = self.t;
        let clock = self.pods[pod].clock;
        let Some(s) = &mut self.pods[pod].sidecar else { return };
        if let Input::Reply { id, .. } | Input::Ended(id) = &input {
            s.running.remove(id);
        }
        let Some(member) = &mut s.member else { return };
        let step = member.step(input, clock.now(t));
        let until = member.leader_until();
        s.leads_until = until.map_or(0, |at| clock.global(at));
        s.wake = clock.global(step.wake_at).max(t + 1);
        let second = t / SEC;
        s.steps = if s.steps.0 == second { (second, s.steps.1 + 1) } else { (second, 1) };
        let busy = s.steps.1 == STEPS_MAX;
        for line in step.lines {
            if line.level != Level::Debug {
                self.sometimes.line(&line.text);
                if line.text.ends_with("(proof by silence)") {
                    self.pods[pod].let_go = true;
                }
                if line.text == "Leader key released" {
                    self.judge.released = t;
                }
                self.note(format!("m{pod}: {}", line.text));
            }
            if line.level == Level::Error && line.text.starts_with("refusing to act") {
                self.violation(format!("check m{pod}: {}", line.text));
            }
        }
        if busy {
            self.violation(format!("L3 m{pod} steps {STEPS_MAX} times within a second"));
        }
        self.check_lease(pod);
        for sent in step.effects {
            if self.pods[pod].sidecar.is_none() {
                return;
            }
            self.sometimes.effect(&sent.effect);
            let late = !self.quiet && self.plan.stalls && self.pods[pod].luck.one_in(400);
            if late && !matches!(sent.effect, Effect::Exit { .. }) {
                let delay = self.pods[pod].luck.between(500 * MS, 5 * SEC);
                self.sidecar_gets(pod, delay, ToSidecar::Begin { sent: Box::new(sent) });
            } else {
                self.perform(pod, sent);
            }
        }
        self.plan_wake(pod);
    }

    pub fn show_view(&mut self, pod: usize, view: &Arc<View>) {
        self.step(pod, Input::View(view.clone()));
    }

    /// Opens a session with the keeper, or tries again later.
    fn connect(&mut self, pod: usize) {
        let t = self.t;
        let there = self.pods[pod].keeper.is_some();
        let Some(s) = &mut self.pods[pod].sidecar else { return };
        if s.conn.is_some() {
            return;
        }
        if !there {
            return self.sidecar_gets(pod, 200 * MS, ToSidecar::Connect);
        }
        let conn = s.life << 20 | (t / MS) & 0xF_FFFF;
        s.conn = Some(conn);
        s.hello = false;
        self.over_socket(pod, ToKeeper::Open(conn));
        let client = format!("patroni m{pod}");
        self.ask_keeper(pod, Ask::Hello { protocol: PROTOCOL, boot_id: "boot".to_owned(), client }, AskedKeeper::Hello);
    }

    pub fn ask_keeper(&mut self, pod: usize, ask: Ask, about: AskedKeeper) {
        let Some(s) = &mut self.pods[pod].sidecar else { return };
        let ready = s.hello || matches!(about, AskedKeeper::Hello);
        let Some(conn) = s.conn.filter(|_| ready) else {
            return self.sidecar_gets(pod, 10_000, ToSidecar::NoKeeper(about));
        };
        s.asks += 1;
        let id = s.asks;
        s.keeper_asked.insert(id, about);
        self.over_socket(pod, ToKeeper::Request { conn, id, ask });
        self.sidecar_gets(pod, KEEPER_DEADLINE, ToSidecar::KeeperSilent(id));
    }

    /// A program's number is used up by asking for it.
    pub fn run_program(&mut self, pod: usize, id: Id, kind: protocol::Kind, work: &super::tasks::Work) {
        let Some(s) = &mut self.pods[pod].sidecar else { return };
        let run = s.next_run;
        s.next_run += 1;
        s.runs.insert(run, id);
        let program = protocol::Program { argv: work.argv(), ..protocol::Program::default() };
        self.ask_keeper(pod, Ask::Run { run, kind, program }, AskedKeeper::Run(id, run));
    }

    fn frame(&mut self, pod: usize, conn: u64, frame: Frame) {
        let Some(s) = self.pods[pod].sidecar.as_mut().filter(|s| s.conn == Some(conn)) else { return };
        match frame {
            Frame::Reply { id, answer } => {
                let Some(about) = s.keeper_asked.remove(&id) else { return };
                match answer {
                    KeeperAnswer::Refused { why, class: Refusal::Busy | Refusal::NotPermitted } => {
                        self.keeper_answers(pod, about, Err(Fail::NotNow(why)));
                    }
                    KeeperAnswer::Refused { why, class: Refusal::InUse } => {
                        self.keeper_answers(pod, about, Err(Fail::InUse(why)));
                    }
                    KeeperAnswer::Refused { why, .. } => self.keeper_answers(pod, about, Err(Fail::Refused(why))),
                    KeeperAnswer::Done => self.keeper_answers(pod, about, Ok(None)),
                    KeeperAnswer::State(state) => self.keeper_answers(pod, about, Ok(Some(*state))),
                }
            }
            Frame::Event(KeeperEvent::Exited { how, at }) => {
                self.news(pod, News::Died { how, at: BootInstant::from_nanos(at) });
            }
            Frame::Event(KeeperEvent::Fenced { why }) => self.news(pod, News::Fenced(why)),
            Frame::Event(KeeperEvent::Terminating { .. }) => {
                self.ask_keeper(pod, Ask::Status, AskedKeeper::Nobody);
                self.news(pod, News::Terminating);
            }
            Frame::Event(KeeperEvent::Output { .. }) => {}
            Frame::Event(KeeperEvent::Finished { run, code, how }) => {
                if let Some(id) = s.runs.remove(&run) {
                    let result = if code == Some(0) { TaskOutcome::Done } else { TaskOutcome::Failed(how) };
                    self.step(pod, Input::Reply { id, answer: Ok(Answer::Task(result)) });
                }
            }
            Frame::Event(KeeperEvent::Superseded) => self.keeper_closed(pod, conn),
        }
    }

    fn news(&mut self, pod: usize, news: News) {
        if let (News::Died { .. }, Some(s)) = (&news, &mut self.pods[pod].sidecar) {
            s.asked_postgres = false;
        }
        if let Some(s) = self.pods[pod].sidecar.as_mut().filter(|s| s.member.is_none()) {
            return s.early.push(news);
        }
        self.step(pod, Input::Keeper(news));
    }

    /// The connection is over: everything that waited for it hears so.
    pub fn keeper_closed(&mut self, pod: usize, conn: u64) {
        let Some(s) = self.pods[pod].sidecar.as_mut().filter(|s| s.conn == Some(conn)) else { return };
        s.conn = None;
        let met = std::mem::take(&mut s.hello);
        let asked = std::mem::take(&mut s.keeper_asked);
        let runs = std::mem::take(&mut s.runs);
        for about in asked.into_values() {
            self.keeper_answers(pod, about, Err(Fail::Unreachable("the connection ended".to_owned())));
        }
        for id in runs.into_values() {
            let why = "the connection ended while a program was running".to_owned();
            self.step(pod, Input::Reply { id, answer: Ok(Answer::Task(TaskOutcome::Interrupted(why))) });
        }
        if met {
            self.news(pod, News::Lost("the keeper closed the connection".to_owned()));
            self.sidecar_gets(pod, 200 * MS, ToSidecar::Connect);
        }
    }

    fn keeper_answers(&mut self, pod: usize, about: AskedKeeper, answer: Result<Option<State>, Fail>) {
        match about {
            AskedKeeper::Hello => self.met(pod, answer),
            AskedKeeper::Kept(id) => {
                self.step(pod, Input::Reply { id, answer: answer.map(|_| Answer::Kept) });
            }
            AskedKeeper::Start(id) => self.start_answered(pod, id, answer),
            AskedKeeper::Begun(id) => self.begun_answered(pod, id, answer),
            AskedKeeper::Running(id, why) => self.running_answered(pod, id, why, answer),
            AskedKeeper::Reload(id) => {
                let answer = answer.map(|_| Answer::Rewritten { reloaded: true });
                self.step(pod, Input::Reply { id, answer });
            }
            AskedKeeper::Run(id, run) => {
                let Err(fail) = answer else { return };
                let Some(s) = &mut self.pods[pod].sidecar else { return };
                if s.runs.remove(&run).is_some() {
                    self.step(
                        pod,
                        Input::Reply { id, answer: Ok(Answer::Task(TaskOutcome::Interrupted(fail.text().to_owned()))) },
                    );
                }
            }
            AskedKeeper::Nobody => {}
        }
    }

    fn met(&mut self, pod: usize, answer: Result<Option<State>, Fail>) {
        let began = self.pods[pod].keeper.as_ref().map_or(self.t, |k| k.began);
        let clock = self.pods[pod].clock;
        let now = self.boot(pod);
        let Some(s) = &mut self.pods[pod].sidecar else { return };
        let Ok(Some(state)) = answer else {
            s.conn = None;
            return self.sidecar_gets(pod, 200 * MS, ToSidecar::Connect);
        };
        s.hello = true;
        s.next_run = s.next_run.max(state.next_run);
        let (began, program) = (clock.wall(began), clock.wall(s.began));
        s.desk.set_life(Life { container: Some("postgres".to_owned()), began, program });
        let standing = standing(&state, now);
        if s.member.is_some() || s.standing.is_some() {
            return self.news(pod, News::Met(standing));
        }
        s.standing = Some(standing);
        self.follow(pod, Feed::Kinds);
        self.follow(pod, Feed::Pods);
    }

    /// Everything is there that a member needs to begin.
    pub fn store_is_there(&mut self, pod: usize) {
        let now = self.pods[pod].clock.now(self.t);
        let name = self.pods[pod].name.clone();
        let Some(s) = &mut self.pods[pod].sidecar else { return };
        if s.member.is_some() || s.standing.is_none() {
            return;
        }
        let uid = match s.desk.my_pod() {
            Some(Ok(pod)) => pod.uid,
            Some(Err(_)) => return self.sidecar_gets(pod, 5 * SEC, ToSidecar::AskMyPod),
            None => {
                if self.request(pod, patroni::dcs::Request::ReadPod(name), Why::MyPod).is_err() {
                    self.note(format!("m{pod} cannot ask for its pod"));
                }
                return;
            }
        };
        let (Some(standing), Some(view)) = (s.standing.take(), s.view.clone()) else { return };
        let who = Identity { name, uid, session: s.session.clone() };
        let in_force = self.in_force(pod, &Arc::from(""));
        let Some(s) = &mut self.pods[pod].sidecar else { return };
        s.member = Some(Member::new(who, in_force, now));
        let early = std::mem::take(&mut s.early);
        self.step(pod, Input::Keeper(News::Met(standing)));
        self.show_view(pod, &view);
        for news in early {
            self.news(pod, news);
        }
    }
}

/// The keeper's words in the member's, as the driver puts them.
fn standing(state: &State, now: BootInstant) -> Standing {
    let permission = match state.permission {
        protocol::Permission::None => Permission::None,
        protocol::Permission::Writer { stop_at, kill_at } => {
            Permission::Writer { stop_at: BootInstant::from_nanos(stop_at), kill_at: BootInstant::from_nanos(kill_at) }
        }
        protocol::Permission::Unfenced { reason: UnfencedReason::Bootstrap } => {
            Permission::Unfenced(model::UnfencedReason::Bootstrap)
        }
        protocol::Permission::Unfenced { reason: UnfencedReason::Pause } => Permission::PAUSED,
    };
    Standing {
        permission,
        note: from_note(&state.note).filter(|(_, evidence)| *evidence <= now),
        postgres: running(state),
        fence: fence_of(state),
        last_death: state.last_death.map(BootInstant::from_nanos),
        terminating: state.terminating,
    }
}

pub fn running(state: &State) -> Option<StartRole> {
    state.postgres.as_ref().map(|p| match (p.role, p.promoted) {
        (protocol::Role::Standby, false) => StartRole::Standby,
        (protocol::Role::Standby, true) | (protocol::Role::Primary, _) => StartRole::Primary,
    })
}

pub fn fence_of(state: &State) -> Fence {
    match state.postgres.as_ref().map(|p| p.fence) {
        Some(protocol::Fence::Full) => Fence::Full,
        Some(protocol::Fence::Partial) | None => Fence::Partial,
    }
}

pub fn note_of(record: &LeaseRecord, evidence: BootInstant) -> String {
    format!("{} {}", evidence.as_nanos(), schema::note(record))
}

fn from_note(text: &str) -> Option<(LeaseRecord, BootInstant)> {
    let (evidence, record) = text.split_once(' ')?;
    Some((schema::from_note(record)?, BootInstant::from_nanos(evidence.parse().ok()?)))
}
