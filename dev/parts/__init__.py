"""The real parts that Chappe runs on, as `dev/deps` knows them: one module per program, none of them knows the command line."""
