-- Payouts: where people are paid to, what is on its way there, and what was already heard or asked.

CREATE TABLE payout_accounts (
  account_id TEXT NOT NULL REFERENCES users (account_id),
  rail TEXT NOT NULL,
  external_id TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('pending', 'ready', 'restricted', 'rejected')),
  destination_type TEXT NOT NULL CHECK (destination_type IN ('', 'bank', 'card')),
  destination_last4 TEXT NOT NULL,
  instant_eligible BOOLEAN NOT NULL,
  updated_at BIGINT NOT NULL,
  PRIMARY KEY (account_id, rail),
  UNIQUE (rail, external_id)
);

-- `reversal`: whether the money of a failed one must come back from the connected account.
-- `next_step_at`: when to go on by ourselves; absent when there is nothing left to do.
CREATE TABLE withdrawals (
  id TEXT NOT NULL PRIMARY KEY,
  account_id TEXT NOT NULL REFERENCES users (account_id),
  rail TEXT NOT NULL,
  external_id TEXT NOT NULL,
  destination_type TEXT NOT NULL,
  destination_last4 TEXT NOT NULL,
  amount BIGINT NOT NULL CHECK (amount > 0),
  fee BIGINT NOT NULL CHECK (fee >= 0),
  net BIGINT NOT NULL CHECK (net > 0),
  method TEXT NOT NULL CHECK (method IN ('standard', 'instant')),
  status TEXT NOT NULL CHECK (status IN ('pending', 'transferred', 'paid', 'failed')),
  transfer_id TEXT UNIQUE,
  payout_id TEXT UNIQUE,
  arrival_at BIGINT,
  failure_reason TEXT NOT NULL,
  refunded BOOLEAN NOT NULL,
  reversal TEXT NOT NULL CHECK (reversal IN ('', 'due', 'done')),
  tries BIGINT NOT NULL,
  payout_attempt BIGINT NOT NULL,
  next_step_at BIGINT,
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL,
  CHECK (amount = fee + net),
  CHECK ((status = 'failed') = refunded)
);
CREATE INDEX withdrawals_by_account ON withdrawals (account_id, created_at);
CREATE INDEX withdrawals_by_next_step ON withdrawals (next_step_at);

CREATE TABLE rail_events (
  rail TEXT NOT NULL,
  event_id TEXT NOT NULL,
  type TEXT NOT NULL,
  received_at BIGINT NOT NULL,
  PRIMARY KEY (rail, event_id)
);

-- `resource` is what the request made, so that it can be answered even if the reply was never kept.
CREATE TABLE idempotency_keys (
  account_id TEXT NOT NULL,
  idempotency_key TEXT NOT NULL,
  request_sha256 TEXT NOT NULL,
  resource TEXT NOT NULL,
  status BIGINT,
  reply TEXT,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (account_id, idempotency_key)
);
CREATE INDEX idempotency_keys_by_time ON idempotency_keys (created_at);
