//! The command line: clap's definitions, and clap's complaints turned into click's form.

use clap::builder::{PossibleValuesParser, StringValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::error::CtlError;

const FORMATS: [&str; 5] = ["pretty", "tsv", "json", "yaml", "yml"];
const ROLES: [&str; 6] = ["leader", "primary", "standby-leader", "replica", "standby", "any"];
const FLUSH: &str = "flush";
/// What `flush` discards: the last word, after the names of members.
const TARGETS: [&str; 2] = ["restart", "switchover"];
/// The same as click shows it.
const TARGET: &str = "{restart|switchover}";

/// What the command line asks for.
pub enum Parsed {
    /// Run this command.
    Run(ArgMatches),
    /// Print this help text and end with this code.
    Help(String, u8),
}

/// Parses the arguments after the program name.
///
/// # Errors
/// A usage error in click's form.
pub fn parse(args: &[String]) -> Result<Parsed, CtlError> {
    let mut command = command();
    match command.try_get_matches_from_mut(std::iter::once(&"patronictl".to_owned()).chain(args)) {
        Ok(matches) if matches.subcommand().is_some() => match wrong_target(&matches) {
            Some(text) => Err(usage(&command, args, |_| text)),
            None => Ok(Parsed::Run(matches)),
        },
        Ok(_) => Ok(Parsed::Help(command.render_help().to_string(), 2)),
        Err(e) if e.kind() == ErrorKind::DisplayHelp => Ok(Parsed::Help(e.render().to_string(), 0)),
        Err(e) => Err(usage(&command, args, |sub| complaint(sub, args, &e))),
    }
}

/// What is wrong with the last word of `flush`. clap takes it for one more name: a list of names, then a word, with options
/// anywhere between them, is beyond it.
fn wrong_target(matches: &ArgMatches) -> Option<String> {
    let (_, args) = matches.subcommand().filter(|(name, _)| *name == FLUSH)?;
    match args.get_many::<String>("MEMBER_NAMES").and_then(|mut words| words.next_back()) {
        None => Some(format!("Missing argument '{TARGET}'. Choose from:\n\t{}", TARGETS.join(",\n\t"))),
        Some(word) if TARGETS.contains(&word.as_str()) => None,
        Some(word) => {
            let allowed = TARGETS.map(|t| format!("'{t}'")).join(", ");
            Some(format!("Invalid value for '{TARGET}': '{word}' is not one of {allowed}."))
        }
    }
}

fn command() -> Command {
    let mut root = Command::new("patronictl")
        .about("Command-line interface for interacting with Patroni.")
        .disable_help_flag(true)
        .disable_help_subcommand(true)
        .disable_version_flag(true)
        .args_override_self(true)
        .arg(help())
        .arg(value("config-file").short('c').env("PATRONICTL_CONFIG_FILE").help("Configuration file"))
        .arg(value("dcs-url").short('d').alias("dcs").env("DCS_URL").help("The DCS connect url"))
        .arg(flag("insecure").short('k').help("Allow connections to SSL sites without certs"));
    for sub in commands() {
        root = root.subcommand(sub.disable_help_flag(true).args_override_self(true).arg(help()));
    }
    root
}

fn commands() -> Vec<Command> {
    let all = vec![
        sub("list", "List the Patroni members for a given Patroni")
            .args([names("CLUSTER_NAMES"), flag("extended").short('e'), flag("timestamp").short('t'), format()])
            .args(watch()),
        sub("topology", "Prints ASCII topology for given cluster").arg(names("CLUSTER_NAMES")).args(watch()),
        sub("history", "Show the history of failovers/switchovers").args([cluster(), format()]),
        sub("dsn", "Generate a dsn for the provided member, defaults to a dsn of the leader").args([
            cluster(),
            role(),
            value("member").short('m'),
        ]),
        query(),
        sub("version", "Output version of patronictl command or a running Patroni instance")
            .args([cluster(), names("MEMBER_NAMES")]),
        sub("show-config", "Show cluster configuration").arg(cluster()),
        sub("edit-config", "Edit cluster configuration")
            .args([cluster(), flag("quiet").short('q'), force(), value("apply"), value("replace")])
            .arg(value("set").short('s').action(ArgAction::Append))
            .arg(value("pg").short('p').action(ArgAction::Append)),
        sub("switchover", "Switchover to a replica").args([
            cluster(),
            value("leader").alias("primary"),
            value("candidate"),
            value("scheduled"),
            force(),
        ]),
        sub("failover", "Failover to a replica").args([cluster(), value("candidate"), force()]),
        sub("remove", "Remove cluster from DCS").args([required_cluster(), format()]),
        sub("demote-cluster", "Demote cluster to a standby cluster")
            .args([cluster(), value("host").help("Address of the remote node")])
            .arg(value("port").value_parser(clap::value_parser!(u16)).help("Port of the remote node"))
            .arg(value("restore-command").help("Command to restore WAL records from the remote primary"))
            .arg(value("primary-slot-name").help("Name of the slot on the remote node to use for replication"))
            .arg(force()),
        sub("promote-cluster", "Promote cluster, make it run standalone").args([cluster(), force()]),
        sub("pause", "Disable auto failover")
            .args([cluster(), flag("wait").help("Wait until it is applied on all nodes")]),
        sub("resume", "Resume auto failover")
            .args([cluster(), flag("wait").help("Wait until it is cleared on all nodes")]),
        sub("reload", "Reload cluster member configuration").args([
            required_cluster(),
            names("MEMBER_NAMES"),
            role(),
            force(),
        ]),
        sub("restart", "Restart cluster member")
            .args([required_cluster(), names("MEMBER_NAMES"), role(), flag("any"), value("scheduled")])
            .args([value("pg-version"), flag("pending"), value("timeout"), force()]),
        sub("reinit", "Reinitialize cluster member").args([
            required_cluster(),
            names("MEMBER_NAMES"),
            flag("from-leader"),
            flag("wait"),
            force(),
        ]),
        sub(FLUSH, "Discard scheduled events")
            .args([required_cluster(), names("MEMBER_NAMES"), role(), force()])
            .override_usage("patronictl flush [OPTIONS] <CLUSTER_NAME> [MEMBER_NAMES]... <restart|switchover>"),
    ];
    all.into_iter().map(|c| c.arg(value("group").value_parser(clap::value_parser!(i64)))).collect()
}

fn query() -> Command {
    sub("query", "Query a Patroni PostgreSQL member")
        .args([cluster(), value("command").short('c'), value("file").short('f'), value("format").default_value("tsv")])
        .args([value("delimiter").default_value("\t"), value("username").short('U'), flag("password")])
        .args([value("dbname").short('d'), role(), value("member").short('m')])
        .args(watch())
}

fn sub(name: &'static str, about: &'static str) -> Command {
    Command::new(name).about(about)
}
fn help() -> Arg {
    Arg::new("help").long("help").action(ArgAction::Help).help("Show this message and exit.")
}
fn value(name: &'static str) -> Arg {
    Arg::new(name).long(name).num_args(1).allow_hyphen_values(true).value_parser(StringValueParser::new())
}
fn flag(name: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue)
}
fn force() -> Arg {
    flag("force").help("Do not ask for confirmation at any point")
}
fn role() -> Arg {
    value("role").short('r').value_parser(PossibleValuesParser::new(ROLES))
}
fn format() -> Arg {
    value("format").short('f').default_value("pretty").value_parser(PossibleValuesParser::new(FORMATS))
}
fn watch() -> [Arg; 2] {
    [
        Arg::new("watch2").short('W').action(ArgAction::SetTrue).help("Auto update the screen every 2 seconds"),
        value("watch").short('w').value_parser(clap::value_parser!(f64)).help("Auto update the screen every X seconds"),
    ]
}
fn cluster() -> Arg {
    Arg::new("CLUSTER_NAME").num_args(1)
}
fn required_cluster() -> Arg {
    cluster().required(true)
}
fn names(name: &'static str) -> Arg {
    Arg::new(name).num_args(0..)
}

/// The usage line of click: options first, then the arguments.
fn pieces(command: &Command) -> String {
    if command.has_subcommands() {
        return "[OPTIONS] COMMAND [ARGS]...".to_owned();
    }
    let mut out = String::from("[OPTIONS]");
    for arg in command.get_positionals().filter(|a| !a.is_hide_set()) {
        let name = arg.get_id().as_str();
        out.push_str(&match (arg.is_required_set(), name.ends_with("NAMES")) {
            (true, _) => format!(" {name}"),
            (false, true) => format!(" [{name}]..."),
            (false, false) => format!(" [{name}]"),
        });
    }
    if command.get_name() == FLUSH {
        out.push_str(&format!(" {TARGET}"));
    }
    out
}

fn usage(root: &Command, args: &[String], complaint: impl FnOnce(&Command) -> String) -> CtlError {
    let sub = args.iter().find_map(|a| root.find_subcommand(a));
    let command = sub.unwrap_or(root);
    let path = sub.map_or_else(|| "patronictl".to_owned(), |s| format!("patronictl {}", s.get_name()));
    CtlError::Usage { path, pieces: pieces(command), text: complaint(command) }
}

fn complaint(command: &Command, args: &[String], error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(s)) => s.clone(),
        Some(ContextValue::Strings(list)) => list.first().cloned().unwrap_or_default(),
        Some(_) | None => String::new(),
    };
    let shown = context(ContextKind::InvalidArg);
    let option = shown.split([' ', '=']).next().unwrap_or_default().trim_matches(['<', '>', '[', ']', '.']).to_owned();
    let given = context(ContextKind::InvalidValue);
    let number = if ["--group", "--port"].contains(&option.as_str()) { "integer" } else { "float" };
    // A foreign type whose variants may grow: the last arm is clap's own sentence.
    #[allow(clippy::wildcard_enum_match_arm)]
    match error.kind() {
        ErrorKind::InvalidSubcommand => format!("No such command '{}'.", context(ContextKind::InvalidSubcommand)),
        ErrorKind::MissingRequiredArgument => format!("Missing argument '{option}'."),
        ErrorKind::UnknownArgument if option.starts_with('-') => format!("No such option: {option}"),
        ErrorKind::UnknownArgument | ErrorKind::TooManyValues => {
            format!("Got unexpected extra argument ({})", if given.is_empty() { shown } else { given })
        }
        ErrorKind::InvalidValue if given.is_empty() => {
            format!("Option '{}' requires an argument.", typed(args, &option))
        }
        ErrorKind::InvalidValue => {
            let allowed = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(list)) => {
                    list.iter().map(|v| format!("'{v}'")).collect::<Vec<_>>().join(", ")
                }
                Some(_) | None => String::new(),
            };
            format!("Invalid value for {}: '{given}' is not one of {allowed}.", both(command, &option))
        }
        ErrorKind::ValueValidation => {
            format!("Invalid value for {}: '{given}' is not a valid {number}.", both(command, &option))
        }
        _ => error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    }
}

/// The option as it was typed last, since click repeats that spelling.
fn typed(args: &[String], option: &str) -> String {
    args.last().filter(|a| a.starts_with('-')).cloned().unwrap_or_else(|| option.to_owned())
}

/// `'--format' / '-f'`.
fn both(command: &Command, option: &str) -> String {
    let arg = command.get_arguments().find(|a| a.get_long().is_some_and(|l| option == format!("--{l}")));
    match arg.and_then(Arg::get_short) {
        Some(short) => format!("'{option}' / '-{short}'"),
        None => format!("'{option}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint_of(line: &str) -> String {
        let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
        match parse(&args) {
            Err(e) => e.to_string(),
            Ok(_) => panic!("accepted: {line}"),
        }
    }

    #[test]
    fn usage_errors_have_clicks_form() {
        let head =
            |path: &str, pieces: &str| format!("Usage: {path} {pieces}\nTry '{path} --help' for help.\n\nError: ");
        let list = head("patronictl list", "[OPTIONS] [CLUSTER_NAMES]...");
        let restart = head("patronictl restart", "[OPTIONS] CLUSTER_NAME [MEMBER_NAMES]...");
        let history = head("patronictl history", "[OPTIONS] [CLUSTER_NAME]");
        let flush = head("patronictl flush", "[OPTIONS] CLUSTER_NAME [MEMBER_NAMES]... {restart|switchover}");
        for (line, want) in [
            ("scaffold", head("patronictl", "[OPTIONS] COMMAND [ARGS]...") + "No such command 'scaffold'."),
            ("restart", restart.clone() + "Missing argument 'CLUSTER_NAME'."),
            ("list --bad", list.clone() + "No such option: --bad"),
            ("list -h", list.clone() + "No such option: -h"),
            ("restart demo --timeout", restart + "Option '--timeout' requires an argument."),
            (
                "list -f x",
                list.clone()
                    + "Invalid value for '--format' / '-f': 'x' is not one of 'pretty', 'tsv', 'json', 'yaml', 'yml'.",
            ),
            ("list --watch x", list + "Invalid value for '--watch' / '-w': 'x' is not a valid float."),
            ("history a b", history.clone() + "Got unexpected extra argument (b)"),
            ("history --group x", history + "Invalid value for '--group': 'x' is not a valid integer."),
            ("flush", flush.clone() + "Missing argument 'CLUSTER_NAME'."),
            (
                "flush demo --force",
                flush.clone() + "Missing argument '{restart|switchover}'. Choose from:\n\trestart,\n\tswitchover",
            ),
            (
                "flush demo restart pg-1",
                flush + "Invalid value for '{restart|switchover}': 'pg-1' is not one of 'restart', 'switchover'.",
            ),
        ] {
            assert_eq!(complaint_of(line), want, "{line}");
        }
    }

    #[test]
    fn what_is_flushed_is_the_last_word_wherever_the_options_stand() {
        for line in ["flush demo restart", "flush demo pg-1 --force restart", "flush demo -r any switchover --force"] {
            let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert!(matches!(parse(&args), Ok(Parsed::Run(_))), "{line}");
        }
    }

    #[test]
    fn the_definitions_are_sound_and_no_command_is_a_usage_error() {
        command().debug_assert();
        assert!(matches!(parse(&[]), Ok(Parsed::Help(text, 2)) if text.contains("switchover")));
        assert!(matches!(parse(&["list".into(), "--help".into()]), Ok(Parsed::Help(_, 0))));
    }
}
