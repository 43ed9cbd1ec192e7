"""An expert's former accounts, and why a capture waits for an expert."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

SCHEMA = r"""
-- Accounts that experts had before; the present one is in experts. None is ever forgotten: Stripe
-- still pays out of them, and transfers to them can still be taken back.
CREATE TABLE former_accounts (
    stripe_account_id text PRIMARY KEY,
    expert_id text NOT NULL REFERENCES experts,
    replace_time timestamptz NOT NULL,
    -- Since when Stripe shows us nothing of it any more; NULL while it does.
    deauthorize_time timestamptz
);
CREATE INDEX former_accounts_by_expert ON former_accounts (expert_id);

CREATE FUNCTION refuse_rewriting_account() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.stripe_account_id, OLD.expert_id, OLD.replace_time)
       IS DISTINCT FROM (NEW.stripe_account_id, NEW.expert_id, NEW.replace_time)
    THEN
        RAISE EXCEPTION 'a former account is not rewritten' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER former_accounts_are_not_rewritten BEFORE UPDATE ON former_accounts
    FOR EACH ROW EXECUTE FUNCTION refuse_rewriting_account();
CREATE TRIGGER former_accounts_are_kept BEFORE DELETE ON former_accounts
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER former_accounts_are_never_truncated BEFORE TRUNCATE ON former_accounts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE FUNCTION refuse_forgetting_account() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM former_accounts
        WHERE stripe_account_id = OLD.stripe_account_id AND expert_id = OLD.expert_id)
       OR EXISTS (SELECT FROM former_accounts WHERE stripe_account_id = NEW.stripe_account_id)
    THEN
        RAISE EXCEPTION 'an account is not forgotten, nor taken again'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER accounts_are_not_forgotten BEFORE UPDATE ON experts
    FOR EACH ROW WHEN (OLD.stripe_account_id IS NOT NULL
        AND NEW.stripe_account_id IS DISTINCT FROM OLD.stripe_account_id)
    EXECUTE FUNCTION refuse_forgetting_account();

-- Every account, and whose it is. On one that is cut off from us the ledger may have lines, posted
-- until unread_time, that we cannot see at Stripe.
CREATE VIEW accounts AS
    SELECT stripe_account_id, expert_id, NOT deauthorized AS readable,
        CASE WHEN deauthorized THEN now() END AS unread_time
    FROM experts WHERE stripe_account_id IS NOT NULL
    UNION ALL
    SELECT stripe_account_id, expert_id, deauthorize_time IS NULL, deauthorize_time
    FROM former_accounts;

-- Why the expert's account cannot be paid, or can never be by this payment.
ALTER TABLE payments
    ADD COLUMN waiting_reason text NOT NULL DEFAULT ''
        CONSTRAINT a_known_reason CHECK (waiting_reason IN ('', 'EXPERT_ONBOARDING',
            'EXPERT_PENDING_VERIFICATION', 'EXPERT_RESTRICTED', 'EXPERT_REJECTED',
            'EXPERT_DEAUTHORIZED', 'EXPERT_REFUSED', 'DESTINATION_ACCOUNT_REPLACED')),
    ADD CONSTRAINT a_reason_to_wait CHECK (waiting_reason = '' OR waiting_for = 'expert');
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise NotImplementedError("the books are not thrown away; restore a backup instead")
