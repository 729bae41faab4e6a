//! The thin shell: one loop that feeds `decide` and carries out what it says.

pub mod clock;
pub mod handle;
pub mod peers;

pub use handle::{
    Answer, ApiSettings, Asked, Command, Handle, HandleEnds, LiveMember, NotTaken, PostgresStatus, Snapshot, WalSender,
    channels,
};
