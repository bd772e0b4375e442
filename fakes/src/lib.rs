//! Push providers for tests: they check what they are sent as strictly as the real ones could, answer by a script, and
//! remember. **Invariant:** what a fake accepts, its provider's documents allow.
