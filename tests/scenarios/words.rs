//! The words of the scripts: what members say, actions as a line.

use super::*;

/// `POSITION@TIMELINE:MEMBER,MEMBER`: the words of a clean shutdown.
pub fn shutdown(text: &str) -> Shutdown {
    let (position, rest) = text.split_once('@').unwrap();
    let (timeline, members) = rest.split_once(':').unwrap();
    Shutdown {
        position: Lsn(position.parse().unwrap()),
        timeline: Timeline(timeline.parse().unwrap()),
        members: members.split(',').map(Into::into).collect(),
    }
}

/// `standby:POSITION[:PRIORITY][@TIMELINE][^KNOWN][!nofailover|!watchdog|!cut-off]`.
pub fn fit_answer(role: &str, rest: &str) -> PeerAnswer {
    let (rest, bar) = rest.split_once('!').unwrap_or((rest, ""));
    let (rest, known) = rest.split_once('^').unwrap_or((rest, "0"));
    let (rest, timeline) = rest.split_once('@').unwrap_or((rest, "1"));
    let (position, priority) = rest.split_once(':').unwrap_or((rest, "1"));
    PeerAnswer::Fit {
        role: if role == "primary" { PeerRole::Primary } else { PeerRole::Standby },
        position: Lsn(position.parse().unwrap()),
        timeline: Timeline(timeline.parse().unwrap()),
        known_timeline: Timeline(known.parse().unwrap()),
        tags: Tags { failover_priority: priority.parse().unwrap(), nofailover: bar == "nofailover", ..Tags::default() },
        watchdog_failed: bar == "watchdog",
        store_seen: (bar == "cut-off").then_some(-3600),
    }
}

pub fn task_kind(word: &str) -> Option<TaskKind> {
    let url = || "postgres://a:5432/postgres".to_owned();
    Some(match word {
        "bootstrap" => TaskKind::Bootstrap,
        "post-bootstrap" => TaskKind::PostBootstrap,
        "clone" => TaskKind::CreateReplica { from: Some("a".into()), conn_url: Some(url()), basebackup_only: false },
        "rewind" => TaskKind::Rewind {
            from: "b".into(),
            conn_url: "postgres://b:5432/postgres".to_owned(),
            timeline: Timeline(2),
        },
        "crash-recovery" => TaskKind::CrashRecovery,
        "remove" => TaskKind::Remove { keep_as_failed: false, verify: Some(url()), why: "why".into() },
        "keep-aside" => TaskKind::Remove { keep_as_failed: true, verify: None, why: "why".into() },
        "none" => return None,
        other => panic!("task {other}"),
    })
}

/// What a takeover writes over.
fn over(stood: &Stood) -> String {
    let named = |r: &LeaseRecord| r.leader.as_ref().map_or("nobody".to_owned(), |l| l.to_string());
    match stood {
        Stood::Record(record) => named(record),
        Stood::ProvenDead(record) => format!("{} (proven dead)", named(record)),
        Stood::Untouched(version) => format!("nobody, untouched since version {version}"),
        Stood::Nothing => "no object".into(),
    }
}

/// Whom commits wait for, where that is ours to say.
fn waiting(names: &StandbyNames) -> String {
    if *names == StandbyNames::AsConfigured { String::new() } else { format!(", commits wait for {names}") }
}

/// One action, short and stable.
pub fn brief(action: &Action) -> String {
    let t = |at: BootInstant| (at.as_secs_f64() - EPOCH_S) * 10.0;
    match action {
        Action::Permit(Permission::Writer { stop_at, kill_at }) => {
            format!("Permit writer stop@{} kill@{}", t(*stop_at).round() / 10.0, t(*kill_at).round() / 10.0)
        }
        Action::Permit(Permission::None) => "Permit none".into(),
        Action::Permit(Permission::Unfenced(UnfencedReason::Bootstrap)) => "Permit unfenced".into(),
        Action::Permit(Permission::Unfenced(UnfencedReason::Pause)) => "Permit paused".into(),
        Action::AcquireLease { stood, claim } => {
            format!("AcquireLease over {}{}", over(stood), claim.map_or(String::new(), |t| format!(" claiming {t}")))
        }
        Action::ClaimTimeline(number) => format!("ClaimTimeline {number}"),
        Action::Promote { claim } => format!("Promote{}", claim.map_or(String::new(), |t| format!(" to {t}"))),
        Action::StartPostgres { role, upstream, names } => {
            format!("Start {role:?} from {}{}", source(upstream), waiting(names))
        }
        Action::Follow { upstream, names } => format!("Follow {}{}", source(upstream), waiting(names)),
        Action::NameStandbys(names) => format!("Name {names}"),
        Action::WriteSync { leader, electorate, .. } => {
            let names = electorate.voters.iter().map(MemberName::as_str).collect::<Vec<_>>().join(" ");
            let quorum = if electorate.quorum > 0 { format!(" quorum {}", electorate.quorum) } else { String::new() };
            format!("WriteSync {} [{names}]{quorum}", leader.as_ref().map_or("nobody", |l| l.as_str()))
        }
        Action::StopPostgres { mode, why } => format!("Stop {mode:?} ({why})"),
        Action::ReleaseLease { shutdown: None } => "ReleaseLease -".into(),
        Action::ReleaseLease { shutdown: Some(s) } => {
            let members = s.members.iter().map(MemberName::as_str).collect::<Vec<_>>().join(" ");
            format!("ReleaseLease at {} on {} with {members}", s.position.0, s.timeline)
        }
        Action::ProveDeath { pod, uid, .. } => format!("ProveDeath {pod} {uid}"),
        Action::AskPeers { members } => {
            format!("AskPeers {}", members.iter().map(MemberName::as_str).collect::<Vec<_>>().join(" "))
        }
        Action::Begin(TaskKind::CreateReplica { from, basebackup_only, .. }) => format!(
            "Begin clone from {}{}",
            from.as_ref().map_or("nobody", |f| f.as_str()),
            if *basebackup_only { " (base backup only)" } else { "" }
        ),
        Action::Begin(TaskKind::Rewind { from, .. }) => format!("Begin rewind from {from}"),
        Action::CheckDivergence { leader, .. } => format!("CheckDivergence from {leader}"),
        Action::ClearRequest { why, .. } => format!("ClearRequest ({why})"),
        Action::BeginHandover(h) => {
            format!("BeginHandover to {}", h.candidate.as_ref().map_or("anybody", |c| c.as_str()))
        }
        Action::Begin(TaskKind::Remove { keep_as_failed, verify, .. }) => format!(
            "Begin removal{}{}",
            if *keep_as_failed { " (keep as .failed)" } else { "" },
            verify.as_ref().map_or(String::new(), |url| format!(", asking {url}"))
        ),
        Action::AnswerRequest { status, text } => format!("Answer {status} {text}"),
        Action::Exit { code, leave_postgres, .. } => {
            format!("Exit {code}{}", if *leave_postgres { " leaving Postgres" } else { "" })
        }
        Action::WriteSystemId { system_id, .. } => format!("WriteSystemId {system_id}"),
        Action::ClaimInitialize { expect } => {
            format!("ClaimInitialize on {}", expect.as_ref().map_or("-", |v| v.0.as_str()))
        }
        Action::WriteConfig { .. } => "WriteConfig".into(),
        other => format!("{other:?}"),
    }
}

pub fn source(upstream: &Upstream) -> &str {
    match upstream {
        Upstream::Member { name, .. } => name.as_str(),
        Upstream::Remote { slot: Some(_), .. } => "remote by its slot",
        Upstream::Remote { slot: None, .. } => "remote",
        Upstream::Nobody => "nobody",
    }
}
