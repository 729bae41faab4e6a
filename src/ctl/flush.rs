//! `flush`: discards what is scheduled, restarts of members or the switchover of the cluster.

use clap::ArgMatches;
use http::Method;

use super::dates;
use super::error::{CtlError, Result};
use super::restart::{self, Unreachable};
use super::select::{self, Operation};
use super::session::Session;
use crate::dcs::kube::KubeStore;
use crate::dcs::{Dcs, WriteResult};
use crate::model::{Cluster, StoreWrite};

/// `flush`.
///
/// # Errors
/// Wrong selection, refusal, unreachable members, a switchover that cannot be cleared.
pub async fn run(session: &mut Session<'_>, args: &ArgMatches) -> Result<()> {
    let scope = session.scope(args)?;
    let store = session.store(&scope).await?;
    let cluster = session.read(&store).await?;
    let mut op = Operation::new("flush", &scope, restart::role(args), args);
    // What is flushed is the last word, and `cli` has checked that it is one of the two.
    let target = op.names.pop();
    match target.as_deref() {
        Some("switchover") => switchover(session, &store, &cluster, &scope).await,
        Some(_) | None => restarts(session, &cluster, &op).await,
    }
}

async fn restarts(session: &mut Session<'_>, cluster: &Cluster, op: &Operation<'_>) -> Result<()> {
    let chosen = select::select(session, cluster, op).await?;
    select::confirm(session, op, &chosen, None, false)?;
    let mut unreachable = Unreachable::default();
    for (name, member) in chosen {
        if !restart::is_scheduled(member) {
            session.say(&format!("No scheduled restart for member {name}"));
        } else if let Err(why) = restart::discard(session, name, member).await {
            unreachable.add(name, &why);
        }
    }
    unreachable.finish()
}

/// Whoever discards it or knows of none has the last word; where nobody has, it is cleared in the store.
async fn switchover(session: &mut Session<'_>, store: &KubeStore, cluster: &Cluster, scope: &str) -> Result<()> {
    let Some(request) = cluster.failover.as_ref().filter(|f| f.scheduled_at.is_some()) else {
        session.say("No pending scheduled switchover");
        return Ok(());
    };
    for (name, member) in select::leader_first(cluster) {
        let answer = match session.call(Method::DELETE, member, "switchover", None).await {
            Ok(answer) => answer,
            Err(why) => {
                session.warn(&format!("Member {name} is not accessible: {why}"));
                continue;
            }
        };
        let (status, text) = (answer.status, answer.text);
        let word = match status {
            200 => "Success",
            404 => "Failed",
            _ => {
                session.say(&format!("Failed: member={name}, status_code={status}, ({text})"));
                continue;
            }
        };
        session.say(&format!("{word}: {text}"));
        return Ok(());
    }
    session.warn("Failing over to DCS");
    let stamp = dates::stamp(&dates::now());
    session.say(&format!("{stamp} Could not find any accessible member of cluster {scope}"));
    cleared(store.write(StoreWrite::ClearRequest { expect: request.version.clone() }).await)
}

fn cleared(result: WriteResult) -> Result<()> {
    match result {
        WriteResult::Written(_) => Ok(()),
        WriteResult::Conflict => {
            Err(CtlError::plain("The switchover was changed at the same time: look at it and try again"))
        }
        WriteResult::Refused(why) => Err(CtlError::plain(format!("Can not clear the switchover in the store: {why}"))),
        WriteResult::Unknown(why) => {
            Err(CtlError::plain(format!("It is not known whether the switchover was cleared in the store: {why}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Version;

    #[test]
    fn only_a_clear_answer_of_the_store_is_success() {
        assert_eq!(cleared(WriteResult::Written(Version("7".into()))), Ok(()));
        for bad in [WriteResult::Conflict, WriteResult::Refused("no".into()), WriteResult::Unknown("silence".into())] {
            assert!(matches!(cleared(bad), Err(CtlError::Plain(_))));
        }
    }
}
