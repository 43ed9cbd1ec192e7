"""The channel to the core, with the gateway's own credentials."""

from grpc import aio

from gateway.settings import Settings
from marketplace.payments.channel import connect
from marketplace.payments.credentials import Tls, Token, WrongCertificate
from sidecar.settings import RefusedSettings


def open_core_channel(settings: Settings) -> aio.Channel:
    """Returns the channel. Raises RefusedSettings if the files of TLS cannot be used.

    A token's file may come later: until then calls fail, and Stripe delivers again.
    """
    token = Token(settings.core_token_file) if settings.core_token_file is not None else None
    tls = None
    if settings.core_tls_ca_file is not None:
        tls = Tls(
            settings.core_tls_ca_file,
            settings.core_tls_certificate_file,
            settings.core_tls_key_file,
            settings.core_tls_server_name,
        )
    try:
        return connect(
            *settings.core_address,
            tls=tls,
            token=token,
            encrypted_by_mesh=settings.core_tls_by_mesh,
        )
    except WrongCertificate as fault:
        raise RefusedSettings(f"CORE_TLS_CA_FILE and its companions: {fault}.") from None
    except OSError as error:
        raise RefusedSettings(
            f"CORE_TLS_CA_FILE and its companions: {error.filename} cannot be read "
            f"({error.strerror})."
        ) from None
