//! Rules that can be taken out, one at a time: a test that would not see the loss of a rule does not test it.
//!
//! The switch is of the thread and is there in debug builds and with the feature `test-mutants` only; in a release build [`is`]
//! is the constant `false` and every line that asks it is compiled away. `tests/sim.rs` runs whole clusters with each of these and demands that a
//! checker of the cluster finds it; `decide::check`, which would refuse most of them, is off meanwhile.

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// What is wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant { $($(#[$doc])* $name),+ }
        /// All of them.
        pub const ALL: &[Mutant] = &[$(Mutant::$name),+];
    };
}

mutants! {
    /// The holder of the lock of a standby cluster is promoted.
    LeadsInStandbyCluster,
    /// A silent holder is taken for dead at once.
    IgnoresTheTtl,
    /// A leader object without a holder counts as released, whoever emptied it.
    BareObjectIsReleased,
    /// Silence costs no ttl.
    SilenceCostsNothing,
    /// An object that is not there for a ttl is taken for one that stood untouched.
    AbsenceIsVacancy,
    /// An object that names nobody is taken over in whatever version it is found.
    AnyVersionWillDo,
    /// The lease counts from the moment its confirmation came.
    LeaseFromConfirmation,
    /// A renewal without a clear answer counts as confirmed.
    UnknownIsConfirmed,
    /// The takeover does not compare the fresh record with the one that stood.
    TakesWithoutComparing,
    /// Writes of the leader object expect no version.
    WritesUnconditionally,
    /// One terminated container is taken for the death of all.
    OneContainerIsAll,
    /// The holder counts on the whole ttl, as if all clocks ran alike.
    NoMarginForClocks,
    /// All deadlines of the holder lie behind the end of its lease.
    FencesAfterTheLease,
    /// The keeper never stops a writer.
    KeeperNeverFences,
    /// The keeper never kills a writer that does not stop.
    KeeperNeverKills,
    /// The keeper lets a writer run that has no permission.
    WriterNeedsNoPermission,
    /// The kernel's timer is never set.
    DeadmanIsNotSet,
    /// Nobody waits until the kernel's timer is set.
    DeadmanIsNotConfirmed,
    /// A warden that hangs is left alone.
    StuckWardenStays,
    /// A silent keeper proves at once that no writer lives, not after the last kill and PostgreSQL's own.
    SilenceIsImpatient,
    /// A silent keeper proves that no writer lives, whatever the own session with Postgres says.
    SilenceNeedsNoSession,
    /// A postmaster counts as dead while its backends live.
    DeadBeforeItsBackends,
    /// An order to stop counts as the end.
    StopIsTheEnd,
    /// A primary starts without a renewal since the last death.
    StartsWithoutRenewal,
    /// Programs of an earlier session go on.
    OldProgramsGoOn,
    /// The position of a clean shutdown is forgotten with its release.
    OathIsForgotten,
    /// Whoever lags too much leads all the same.
    LagIsIgnored,
    /// Positions are compared across timelines.
    PositionsAcrossTimelines,
    /// The sync key keeps nobody from leading.
    SyncKeyBindsNobody,
    /// A standby is no longer waited for while the sync key still vouches for it.
    NamesGoBeforeTheKey,
    /// The sync key vouches for a standby as soon as it is named.
    KeyBeforeSure,
    /// Who has the lock to win trusts the history in its view, although others know of newer timelines.
    HistoryOnTrust,
    /// The watchdog is disarmed before Postgres is dead.
    DisarmsTooEarly,
    /// A promotion takes the number after its own, whatever others have heard of.
    NumbersAreNotShared,
    /// An empty store is initialized although other members have data.
    InitdbDespiteData,
    /// A new cluster goes on without a fence when no lock comes.
    UnfencedForEver,
    /// Data is removed without asking the leader just before.
    RemovesUnasked,
    /// A directory that a rewind did not finish counts as whole.
    HalfMadeIsWhole,
    /// Nobody has ever diverged.
    DivergenceIsDenied,
    /// A standby stays with the upstream it had.
    NeverFollows,
    /// In maintenance mode Postgres is started when it has ended by itself.
    StartsInPause,
    /// In maintenance mode a standby races for a free lock.
    PromotesInPause,
    /// In maintenance mode a primary is stopped when its lock is not renewed.
    FencesInPause,
    /// After the maintenance a primary goes on without a deadline, whether or not its lock is renewed.
    ResumesUnrenewed,
    /// The lock of a holder in maintenance ends by time.
    TakesPausedHolder,
    /// A primary goes on without the store when most of the others promise to leave it the lock.
    FailsafeByMajority,
    /// A promise to leave somebody the lock is given and not kept.
    PromisesAreForgotten,
    /// In quorum mode any voter leads, however few others answer.
    QuorumNeedsNoVotes,
    /// A request of a person is not consumed.
    RequestsStay,
    /// What failed is tried again at once.
    NeverRests,
    /// A keeper that was silent once stays lost.
    KeeperStaysLost,
    /// Versions that went back are taken for old news.
    RestoreIsNotSeen,
    /// A renewal that was not answered counts as a lost lock.
    SilenceIsALostLock,
    /// A former leader keeps its label until it removes it itself.
    LabelsStay,
}

#[cfg(any(debug_assertions, feature = "test-mutants"))]
thread_local! {
    static PRESENT: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Takes a rule out in this thread, or puts all back.
#[cfg(any(debug_assertions, feature = "test-mutants"))]
pub fn set(mutant: Option<Mutant>) {
    PRESENT.set(mutant);
}

/// Is this wrong?
#[inline]
pub fn is(mutant: Mutant) -> bool {
    present() == Some(mutant)
}

/// Is anything wrong?
#[inline]
pub fn any() -> bool {
    present().is_some()
}

#[cfg(any(debug_assertions, feature = "test-mutants"))]
fn present() -> Option<Mutant> {
    PRESENT.get()
}

#[cfg(not(any(debug_assertions, feature = "test-mutants")))]
const fn present() -> Option<Mutant> {
    None
}
