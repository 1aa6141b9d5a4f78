-- Sign-in, named keys, device codes that can be refused, invites and referrals.

ALTER TABLE users ADD COLUMN password_hash TEXT;
ALTER TABLE users ADD COLUMN is_admin BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE users ADD COLUMN session_generation BIGINT NOT NULL DEFAULT 0;

-- Sessions that somebody signed out of, kept until they would have expired.
CREATE TABLE ended_sessions (
  session_id TEXT NOT NULL PRIMARY KEY,
  expires_at BIGINT NOT NULL
);
CREATE INDEX ended_sessions_by_expiry ON ended_sessions (expires_at);

ALTER TABLE api_keys ADD COLUMN name TEXT NOT NULL DEFAULT '';
ALTER TABLE api_keys ADD COLUMN hint TEXT NOT NULL DEFAULT '';
CREATE INDEX api_keys_by_account ON api_keys (account_id, created_at);
CREATE INDEX device_tokens_by_account ON device_tokens (account_id, created_at);

-- A code lives for minutes, so the table can simply be made anew.
DROP TABLE device_codes;
CREATE TABLE device_codes (
  device_code_sha256 TEXT NOT NULL PRIMARY KEY,
  user_code TEXT NOT NULL UNIQUE,
  state TEXT NOT NULL CHECK (state IN ('pending', 'approved', 'consumed', 'denied')),
  account_id TEXT REFERENCES users (account_id),
  created_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL,
  CHECK ((state IN ('pending', 'denied')) = (account_id IS NULL))
);
CREATE INDEX device_codes_by_expiry ON device_codes (expires_at);

CREATE TABLE invites (
  code TEXT NOT NULL PRIMARY KEY,
  amount BIGINT NOT NULL CHECK (amount >= 0),
  max_uses BIGINT NOT NULL CHECK (max_uses >= 1),
  used_count BIGINT NOT NULL CHECK (used_count BETWEEN 0 AND max_uses),
  active BOOLEAN NOT NULL,
  created_at BIGINT NOT NULL,
  expires_at BIGINT
);

CREATE TABLE invite_redemptions (
  code TEXT NOT NULL REFERENCES invites (code),
  account_id TEXT NOT NULL REFERENCES users (account_id),
  redeemed_at BIGINT NOT NULL,
  PRIMARY KEY (code, account_id)
);

CREATE TABLE referrers (
  account_id TEXT NOT NULL PRIMARY KEY REFERENCES users (account_id),
  code TEXT NOT NULL UNIQUE,
  created_at BIGINT NOT NULL
);

-- An account is referred at most once, and not by itself.
CREATE TABLE referrals (
  account_id TEXT NOT NULL PRIMARY KEY REFERENCES users (account_id),
  referrer TEXT NOT NULL REFERENCES referrers (account_id),
  created_at BIGINT NOT NULL,
  CHECK (account_id <> referrer)
);
CREATE INDEX referrals_by_referrer ON referrals (referrer);
