-- The books, the accounts and the credentials. `$identity` is the dialect's growing integer key.
-- Times are microseconds since 1970-01-01 UTC. Money is micro-USD.

CREATE TABLE accounts (
  id TEXT NOT NULL PRIMARY KEY,
  kind TEXT NOT NULL CHECK (kind IN ('user', 'wallet', 'internal')),
  balance BIGINT NOT NULL,
  withdrawable BIGINT NOT NULL,
  created_at BIGINT NOT NULL,
  CHECK (kind = 'internal' OR (0 <= withdrawable AND withdrawable <= balance))
);

CREATE TABLE transfers (
  id $identity,
  type TEXT NOT NULL,
  reference TEXT NOT NULL,
  created_at BIGINT NOT NULL
);
CREATE INDEX transfers_by_reference ON transfers (reference);

CREATE TABLE entries (
  id $identity,
  transfer_id BIGINT NOT NULL REFERENCES transfers (id),
  account_id TEXT NOT NULL REFERENCES accounts (id),
  amount BIGINT NOT NULL CHECK (amount <> 0),
  withdrawable BIGINT NOT NULL,
  balance_after BIGINT NOT NULL,
  UNIQUE (transfer_id, account_id)
);
CREATE INDEX entries_by_account ON entries (account_id, id);

CREATE TABLE jobs (
  reservation_id TEXT NOT NULL PRIMARY KEY,
  job_id TEXT UNIQUE,
  account_id TEXT NOT NULL REFERENCES accounts (id),
  model TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('reserved', 'settled', 'partial', 'refunded')),
  reserved BIGINT NOT NULL CHECK (reserved >= 0),
  withdrawable_reserved BIGINT NOT NULL CHECK (withdrawable_reserved BETWEEN 0 AND reserved),
  cost BIGINT NOT NULL CHECK (cost BETWEEN 0 AND reserved),
  payout BIGINT NOT NULL CHECK (payout BETWEEN 0 AND cost),
  fee BIGINT NOT NULL CHECK (fee BETWEEN 0 AND cost),
  beneficiary TEXT REFERENCES accounts (id),
  prompt_tokens BIGINT NOT NULL CHECK (prompt_tokens >= 0),
  completion_tokens BIGINT NOT NULL CHECK (completion_tokens >= 0),
  input_price BIGINT NOT NULL,
  output_price BIGINT NOT NULL,
  minimum BIGINT NOT NULL,
  created_at BIGINT NOT NULL,
  closed_at BIGINT,
  CHECK ((state = 'reserved') = (closed_at IS NULL)),
  CHECK ((state IN ('settled', 'partial')) = (job_id IS NOT NULL)),
  CHECK (job_id IS NULL OR payout + fee = cost)
);
CREATE INDEX jobs_by_account ON jobs (account_id, closed_at);
CREATE INDEX jobs_by_state ON jobs (state);

CREATE TABLE earnings (
  id $identity,
  account_id TEXT NOT NULL REFERENCES accounts (id),
  provider_id TEXT NOT NULL,
  provider_key TEXT NOT NULL,
  machine_id TEXT,
  job_id TEXT NOT NULL UNIQUE REFERENCES jobs (job_id),
  model TEXT NOT NULL,
  amount BIGINT NOT NULL CHECK (amount >= 0),
  prompt_tokens BIGINT NOT NULL,
  completion_tokens BIGINT NOT NULL,
  created_at BIGINT NOT NULL
);
CREATE INDEX earnings_by_account ON earnings (account_id, created_at);
CREATE INDEX earnings_by_provider_key ON earnings (provider_key, created_at);
CREATE INDEX earnings_by_time ON earnings (created_at);

CREATE TABLE wallet_payouts (
  id $identity,
  address TEXT NOT NULL REFERENCES accounts (id),
  provider_id TEXT NOT NULL,
  provider_key TEXT NOT NULL,
  machine_id TEXT,
  job_id TEXT NOT NULL UNIQUE REFERENCES jobs (job_id),
  model TEXT NOT NULL,
  amount BIGINT NOT NULL CHECK (amount >= 0),
  prompt_tokens BIGINT NOT NULL,
  completion_tokens BIGINT NOT NULL,
  settled BOOLEAN NOT NULL,
  created_at BIGINT NOT NULL
);
CREATE INDEX wallet_payouts_by_address ON wallet_payouts (address, id);

-- Every machine identity that ever reported an address. NULL identities are written as ''.
CREATE TABLE wallet_sightings (
  address TEXT NOT NULL,
  machine_id TEXT NOT NULL,
  first_seen BIGINT NOT NULL,
  PRIMARY KEY (address, machine_id)
);

CREATE TABLE wallet_claims (
  address TEXT NOT NULL PRIMARY KEY REFERENCES accounts (id),
  account_id TEXT NOT NULL REFERENCES accounts (id),
  claimed_at BIGINT NOT NULL
);

CREATE TABLE users (
  account_id TEXT NOT NULL PRIMARY KEY REFERENCES accounts (id),
  email TEXT NOT NULL UNIQUE,
  created_at BIGINT NOT NULL
);

CREATE TABLE api_keys (
  key_sha256 TEXT NOT NULL PRIMARY KEY,
  account_id TEXT NOT NULL REFERENCES users (account_id),
  created_at BIGINT NOT NULL,
  revoked_at BIGINT
);

CREATE TABLE device_codes (
  device_code_sha256 TEXT NOT NULL PRIMARY KEY,
  user_code TEXT NOT NULL UNIQUE,
  state TEXT NOT NULL CHECK (state IN ('pending', 'approved', 'consumed')),
  account_id TEXT REFERENCES users (account_id),
  created_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL,
  CHECK ((state = 'pending') = (account_id IS NULL))
);
CREATE INDEX device_codes_by_expiry ON device_codes (expires_at);

CREATE TABLE device_tokens (
  token_sha256 TEXT NOT NULL PRIMARY KEY,
  account_id TEXT NOT NULL REFERENCES users (account_id),
  label TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  revoked_at BIGINT
);
