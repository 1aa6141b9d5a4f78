-- What the operator changes while it runs (models, prices, releases), and credit that people buy.

-- A price is never overwritten: a row holds from its time on, and one without prices ends it.
-- `account_id` is `platform` for the operator's, else whoever serves at a price of their own.
CREATE TABLE prices (
  id $identity,
  account_id TEXT NOT NULL,
  model TEXT NOT NULL,
  input_price BIGINT,
  output_price BIGINT,
  since BIGINT NOT NULL,
  CHECK ((input_price IS NULL) = (output_price IS NULL)),
  CHECK (input_price IS NULL OR (input_price > 0 AND output_price > 0))
);
CREATE INDEX prices_by_model ON prices (account_id, model, id);

-- Laid over the catalogue that the coordinator was started with. `listed` is false for a model that
-- was taken out of it.
CREATE TABLE models (
  id TEXT NOT NULL PRIMARY KEY,
  listed BOOLEAN NOT NULL,
  s3_name TEXT NOT NULL,
  display_name TEXT NOT NULL,
  model_type TEXT NOT NULL,
  size_gb DOUBLE PRECISION NOT NULL,
  architecture TEXT NOT NULL,
  description TEXT NOT NULL,
  min_ram_gb BIGINT NOT NULL,
  active BOOLEAN NOT NULL,
  weight_hash TEXT NOT NULL,
  changed_at BIGINT NOT NULL
);

CREATE TABLE releases (
  version TEXT NOT NULL,
  platform TEXT NOT NULL,
  binary_hash TEXT NOT NULL,
  bundle_hash TEXT NOT NULL,
  python_hash TEXT NOT NULL,
  runtime_hash TEXT NOT NULL,
  template_hashes TEXT NOT NULL,
  url TEXT NOT NULL,
  changelog TEXT NOT NULL,
  active BOOLEAN NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (version, platform)
);

-- `amount` was asked for, `credited` is what was paid and booked. `refunded` and `disputed` say what
-- became of the payment afterwards; the books do not follow by themselves.
CREATE TABLE deposits (
  id TEXT NOT NULL PRIMARY KEY,
  account_id TEXT NOT NULL,
  rail TEXT NOT NULL,
  external_id TEXT,
  payment_id TEXT,
  amount BIGINT NOT NULL CHECK (amount > 0),
  credited BIGINT NOT NULL CHECK (credited >= 0),
  refunded BIGINT NOT NULL CHECK (refunded >= 0),
  disputed BIGINT NOT NULL CHECK (disputed >= 0),
  referral_code TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('pending', 'completed', 'expired')),
  created_at BIGINT NOT NULL,
  completed_at BIGINT,
  UNIQUE (rail, external_id),
  CHECK ((status = 'completed') = (completed_at IS NOT NULL)),
  CHECK ((status = 'completed') = (credited > 0))
);
CREATE INDEX deposits_by_account ON deposits (account_id, created_at);
CREATE INDEX deposits_by_payment ON deposits (rail, payment_id);

-- The traffic of the last minutes is asked for by everybody.
CREATE INDEX jobs_by_closing ON jobs (closed_at);
