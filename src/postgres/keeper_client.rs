//! The connection to the keeper.
