//! `remove`: everything that the Kubernetes API keeps of a cluster, but its pods.
//!
//! Three questions stand before it, because there is no way back: who follows what, when members still run, is then found out
//! anew. Data directories are not touched.

use clap::ArgMatches;

use super::error::{CtlError, Result};
use super::members::Show;
use super::prompts;
use super::session::{Session, text_of};
use super::view;

const AWARE: &str = "Yes I am aware";

/// `remove`.
///
/// # Errors
/// An answer that is not the one asked for: nothing is removed then. The API server's refusal.
pub async fn run(session: &mut Session<'_>, args: &ArgMatches) -> Result<()> {
    let scope = session.scope(args)?;
    let store = session.store(&scope).await?;
    let cluster = session.read(&store).await?;
    let format = view::format_of(args);
    let table = session.member_table(&cluster, &Show { scope: &scope, extended: false, format }).await;
    session.terminal.out(&text_of(&table, format));
    let named = prompts::ask_required(session.terminal, "Please confirm the cluster name to remove")?;
    if named != scope {
        return Err(CtlError::plain("Cluster names specified do not match"));
    }
    let question = format!("You are about to remove all information in DCS for {scope}, please type: \"{AWARE}\"");
    if prompts::ask_required(session.terminal, &question)? != AWARE {
        return Err(CtlError::plain(format!("You did not exactly type \"{AWARE}\"")));
    }
    if let Some(leader) = cluster.leader.as_ref().and_then(|l| l.named()) {
        let question = "This cluster currently is healthy. Please specify the leader name to continue";
        if prompts::ask_required(session.terminal, question)? != leader.as_str() {
            return Err(CtlError::plain("You did not specify the current leader of the cluster"));
        }
    }
    store.remove_cluster().await.map_err(|e| CtlError::plain(e.to_string()))
}
