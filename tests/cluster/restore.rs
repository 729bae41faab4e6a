//! A whole cluster from a backup and an archive: custom bootstrap methods, and recovery to a point in time.

use std::path::PathBuf;
use std::time::Duration;

use patroni::demo::cluster::{Cluster, Options};
use patroni::demo::machine::{self, User};
use patroni::demo::member::PASSWORD;
use patroni::demo::{Doing, Res, fail};
use tokio::process::Command;

use super::{keep_logs, leader_object, must};

/// Rows at the point that is restored. After it they are deleted.
const ROWS: &str = "1000";

/// A base backup and an archive of plain files, made by a cluster that is gone.
struct Backup {
    /// `base` and `archive`.
    dir: PathBuf,
    /// The segment with the restore point `before_the_mistake`.
    segment: String,
    /// A moment between the last row and its deletion.
    time: String,
}

impl Drop for Backup {
    fn drop(&mut self) {
        // A temporary directory that stays harms nobody.
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

impl Backup {
    async fn make(options: &Options) -> Res<Backup> {
        let user = User::find_or_make()?;
        let dir = machine::private_dir("patroni-backup")?;
        let mut backup = Backup { dir, segment: String::new(), time: String::new() };
        user.own(&backup.dir)?;
        let archive = backup.dir.join("archive");
        std::fs::create_dir(&archive).doing("make the archive")?;
        user.own(&archive)?;
        let archives = format!("    archive_mode: 'on'\n    archive_command: cp %p {}/%f\n", archive.display());
        let source = Options { scope: "source".into(), members: 1, parameters_extra: archives, ..options.clone() };
        let mut cluster = Cluster::start(source).await?;
        let result = backup.fill(&mut cluster, &user).await;
        if result.is_err() {
            keep_logs(&cluster);
        }
        result.map(|()| backup)
    }

    async fn fill(&mut self, cluster: &mut Cluster, user: &User) -> Res<()> {
        cluster.wait_whole(cluster.options.healed_within() + Duration::from_secs(20)).await?;
        cluster.sql(0, "CREATE TABLE kept (n int)").await?;
        let role = "SELECT rolname FROM pg_roles WHERE rolname = 'replicator'";
        let deadline = Duration::from_secs(10);
        cluster
            .wait_for("an account", deadline, async |c| c.sql(0, role).await.is_ok_and(|r| !r.is_empty()).then_some(()))
            .await?;
        let mut copy = Command::new(cluster.options.postgres.join("pg_basebackup"));
        let to = format!("--pgdata={}", self.dir.join("base").display());
        let from =
            format!("--dbname=host=127.0.0.1 port={} user=replicator password={}", cluster.members[0].port, PASSWORD);
        copy.args(["--wal-method=none", "--checkpoint=fast"]).arg(to).arg(from).current_dir("/");
        user.run_as(&mut copy);
        must(copy.status().await.doing("run pg_basebackup")?.success(), "pg_basebackup failed")?;
        cluster.sql(0, &format!("INSERT INTO kept SELECT generate_series(1, {ROWS})")).await?;
        cluster.sql(0, "SELECT pg_switch_wal()").await?;
        let time = cluster.sql(0, "SELECT now() FROM pg_sleep(0.2)").await?;
        let point = cluster.sql(0, "SELECT pg_walfile_name(pg_create_restore_point('before_the_mistake'))").await?;
        cluster.sql(0, "SELECT pg_sleep(0.2)").await?;
        cluster.sql(0, "DELETE FROM kept").await?;
        cluster.sql(0, "SELECT pg_switch_wal()").await?;
        let first = |rows: &[Vec<String>]| rows.first().and_then(|r| r.first()).cloned().unwrap_or_default();
        (self.segment, self.time) = (first(&point), first(&time));
        let archived = self.dir.join("archive").join(&self.segment);
        cluster
            .wait_for("the last segment in the archive", Duration::from_secs(20), async |_| {
                archived.exists().then_some(())
            })
            .await
    }

    /// While this file exists, recovery waits for the segment with the restore point.
    fn gate(&self) -> PathBuf {
        self.dir.join("gate")
    }

    /// The beginning of a `restore_command` that waits there.
    fn waits(&self) -> String {
        format!("while test -e {} && test %f = {}; do sleep 0.1; done; cp ", self.gate().display(), self.segment)
    }

    fn restore_command(&self) -> String {
        format!("{}{}/%f %p", self.waits(), self.dir.join("archive").display())
    }

    /// A method `pitr` that copies the base backup, tells so, and has these lines besides.
    fn method(&self, lines: &str) -> String {
        let script = self.dir.join("restore.sh");
        format!(
            "  method: pitr\n  post_bootstrap: sh {}/after.sh\n  pitr:\n    command: sh {}\n{lines}",
            self.dir.display(),
            script.display()
        )
    }

    fn write(&self, name: &str, text: &str) -> Res<()> {
        std::fs::write(self.dir.join(name), text).doing(format!("write {name}"))
    }

    /// The programs that the method calls.
    fn write_programs(&self, more: &str) -> Res<()> {
        let dir = self.dir.display();
        self.write(
            "restore.sh",
            &format!(
                "for a; do case $a in --datadir=*) to=${{a#--datadir=}};; --to=*) to=${{a#--to=}};; esac; done\n\
                 echo restores: \"$@\"\ncp -a {dir}/base \"$to\" && chmod 700 \"$to\"\n{more}"
            ),
        )?;
        self.write("after.sh", &format!("echo \"$1\" >> {dir}/after.log\n"))
    }
}

async fn kept(cluster: &Cluster, member: usize) -> Res<String> {
    let rows = cluster.sql(member, "SELECT count(*) FROM kept").await?;
    Ok(rows.first().and_then(|r| r.first()).cloned().unwrap_or_default())
}

/// Whoever runs the method.
async fn initializer(cluster: &mut Cluster, said: &str) -> Res<usize> {
    let deadline = Duration::from_secs(30);
    cluster.wait_for(said, deadline, async |c| c.members.iter().position(|m| m.log().contains(said))).await
}

/// "A test runs this example": a piece of the page, with this directory.
fn documented(backup: &Backup, begins: &str) -> Res<String> {
    let page = include_str!("../../docs/backup.md");
    let piece = page.split("```").find_map(|piece| piece.strip_prefix(begins));
    let Some(piece) = piece else { return fail(format!("docs/backup.md has no piece that begins with {begins:?}")) };
    Ok(piece.replace("/backup", &backup.dir.display().to_string()))
}

/// "A sidecar that is killed meanwhile finds the recovery running and goes on with it".
pub async fn a_recovery_to_a_restore_point_outlives_its_sidecar(options: Options) -> Res<()> {
    let backup = Backup::make(&options).await?;
    backup.write_programs("")?;
    let script = documented(&backup, "sh\n")?;
    backup.write("restore.sh", &format!("echo restores: \"$@\"\n{script}"))?;
    backup.write("gate", "")?;
    let method = documented(&backup, "yaml\nbootstrap:\n")?.replace("cp ", &backup.waits());
    let bootstrap_extra = format!("{method}  post_bootstrap: sh {}/after.sh\n", backup.dir.display());
    let mut cluster = Cluster::start(Options { bootstrap_extra, members: 2, ..options }).await?;
    let result = killed_in_the_middle(&mut cluster, &backup).await;
    if result.is_err() {
        keep_logs(&cluster);
    }
    result
}

async fn killed_in_the_middle(cluster: &mut Cluster, backup: &Backup) -> Res<()> {
    let first = initializer(cluster, "recovery has replayed WAL up to").await?;
    let postmaster = |c: &Cluster| {
        std::fs::read_to_string(c.members[first].data_dir().join("postmaster.pid"))
            .unwrap_or_default()
            .lines()
            .next()
            .map(str::to_owned)
    };
    let before = postmaster(cluster);
    cluster
        .wait_for("a list with a member in recovery and its position", cluster.options.secs(60.0), async |c| {
            let (_, table, _) = c.patronictl(&["list"]).await.ok()?;
            table
                .lines()
                .any(|l| l.contains(&c.members[first].name) && l.contains("in archive recovery") && l.contains("0/"))
                .then_some(())
        })
        .await?;
    cluster.kill_sidecar(first).await?;
    tokio::time::sleep(cluster.options.secs(5.0)).await;
    cluster.restart_sidecar(first)?;
    let again = "going on with the recovery of the new cluster";
    let deadline = cluster.options.secs(60.0);
    cluster.wait_for(again, deadline, async |c| c.members[first].log().contains(again).then_some(())).await?;
    std::fs::remove_file(backup.gate())?;
    let leader = cluster.wait_whole(cluster.options.healed_within() + Duration::from_secs(20)).await?;
    must(leader == first, format!("{leader} leads, {first} recovered"))?;
    must(before.is_some() && postmaster(cluster) == before, "Postgres was started again")?;
    restored(cluster, backup).await?;
    let log = cluster.members[first].log();
    must(log.matches("restores: --scope=test --datadir=").count() == 1, "the method did not run once")
}

/// Everybody has the rows; the script after it ran once; the account of this cluster comes in, and the file that let this
/// machine in is gone.
async fn restored(cluster: &Cluster, backup: &Backup) -> Res<()> {
    for i in 0..cluster.members.len() {
        let rows = kept(cluster, i).await?;
        must(rows == ROWS, format!("member {i} has {rows} rows of {ROWS}"))?;
        let auto = std::fs::read_to_string(cluster.members[i].data_dir().join("postgresql.auto.conf"))?;
        must(!auto.contains("recovery_target"), format!("member {i} has a target of recovery: {auto}"))?;
        let hba = std::fs::read_to_string(cluster.members[i].data_dir().join("pg_hba.conf"))?;
        must(!hba.contains("\"postgres\""), format!("member {i} trusts this machine: {hba}"))?;
    }
    let after = std::fs::read_to_string(backup.dir.join("after.log")).doing("read what post_bootstrap wrote")?;
    must(after.lines().count() == 1 && after.contains("user=postgres"), format!("post_bootstrap: {after}"))
}

/// "`keep_existing_recovery_conf`": what the tool has written counts; `no_params`: it gets its own arguments alone.
pub async fn what_a_tool_has_written_is_recovered_to(options: Options) -> Res<()> {
    let backup = Backup::make(&options).await?;
    let command = backup.restore_command().replace('\'', "''");
    backup.write_programs(&format!(
        "cat >> \"$to/postgresql.auto.conf\" <<'END'\nrestore_command = '{command}'\nrecovery_target_time = '{}'\nEND\n\
         touch \"$to/recovery.signal\"\n",
        backup.time
    ))?;
    backup.write("gate", "")?;
    let lines = "    keep_existing_recovery_conf: true\n    no_params: true\n    to: DATADIR\n";
    // Where the data goes is known once the cluster has a directory.
    let method = backup.method(lines);
    let mut cluster = Cluster::prepare(Options { bootstrap_extra: method, members: 2, ..options }).await?;
    for i in 0..2 {
        let path = cluster.members[i].config_path();
        let data = cluster.members[i].data_dir().display().to_string();
        std::fs::write(&path, std::fs::read_to_string(&path)?.replace("DATADIR", &data))?;
        cluster.restart_sidecar(i)?;
    }
    let result = async {
        // Postgres and keeper end with the sidecar: the recovery goes on, the method does not run again.
        let first = initializer(&mut cluster, "recovery has replayed WAL up to").await?;
        cluster.kill_member(first).await?;
        cluster.start_member(first).await?;
        std::fs::remove_file(backup.gate())?;
        cluster.wait_whole(cluster.options.healed_within() + Duration::from_secs(20)).await?;
        let log = cluster.members[first].log();
        must(log.matches("restores: --to=/").count() == 1, "the method did not run once, with its own argument")?;
        restored(&cluster, &backup).await
    }
    .await;
    if result.is_err() {
        keep_logs(&cluster);
    }
    result
}

/// "A method that fails leaves nothing but `DATA.failed`": one line says why, in the words of who failed.
pub async fn a_method_that_fails_gives_the_key_back(options: Options) -> Res<()> {
    let backup = Backup::make(&options).await?;
    backup.write_programs("")?;
    let beyond = format!(
        "    recovery_conf:\n      restore_command: '{}'\n      recovery_target_lsn: 7F/0\n",
        backup.restore_command()
    );
    let shutdown = "    recovery_conf:\n      recovery_target_action: shutdown\n";
    let missing = backup.method("").replace("command: sh ", "command: /nowhere/restore ");
    let fails = backup.method("").replace("restore.sh", "fails.sh");
    backup.write("fails.sh", "echo only words; echo no such stanza >&2; exit 3\n")?;
    for (method, words, leaves) in [
        (backup.method(&beyond), "recovery ended before configured recovery target was reached", true),
        (missing, "bootstrap.pitr.command: the keeper refuses: start /nowhere/restore: No such file", false),
        (fails, "bootstrap.pitr.command: sh: exit code 3: no such stanza", false),
        (backup.method(shutdown), "recovery_target_action shutdown", true),
    ] {
        let options = Options { bootstrap_extra: method, members: 1, ..options.clone() };
        let mut cluster = Cluster::start(options).await?;
        let result = gave_up(&mut cluster, words, leaves).await;
        if result.is_err() {
            keep_logs(&cluster);
            return result;
        }
    }
    let whole =
        backup.dir.join("base/PG_VERSION").exists() && backup.dir.join("archive").join(&backup.segment).exists();
    must(whole, "the backup itself was touched")
}

async fn gave_up(cluster: &mut Cluster, words: &str, leaves: bool) -> Res<()> {
    cluster.members[0].ended(Duration::from_secs(30)).await?;
    let log = cluster.members[0].log();
    must(log.contains(words), format!("the log does not say {words:?}"))?;
    let said = log.lines().filter(|l| l.contains("Failed to bootstrap cluster: ")).count();
    must(said > 0, "the log does not say that it failed")?;
    let (kind, _) = leader_object(cluster.options.mode);
    let config = cluster.api.annotations(kind, "test-config").await;
    let key = config.ok().and_then(|c| c.get("initialize").cloned());
    must(key.is_none(), format!("the initialize key is {key:?}"))?;
    let data = cluster.members[0].data_dir();
    let failed = data.with_file_name("data.failed");
    must(!data.exists(), "the data directory is still there")?;
    if failed.exists() != leaves {
        return fail(format!("{} exists: {}", failed.display(), failed.exists()));
    }
    Ok(())
}
