"""How the settings decide who may call: the authenticator, and the port's TLS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import grpc

from payment_service.adapters.identity.callers import CertificateAuthenticator
from payment_service.adapters.identity.certificates import TlsFiles, server_credentials
from payment_service.adapters.identity.files import Report, WrongFile
from payment_service.adapters.identity.jwks import key_source
from payment_service.adapters.identity.local import LocalAuthenticator
from payment_service.adapters.identity.tokens import TokenAuthenticator, TokenRules
from payment_service.config import Settings, WrongSettings
from payment_service.domain.ports.identity import Authenticator


class Access(Authenticator, Protocol):
    """An authenticator that can say whether it is able to work."""

    async def ready(self) -> bool:
        """Returns whether callers can be authenticated. It is asked every second."""
        ...


def authenticator_of(settings: Settings, report: Report = lambda source, fault: None) -> Access:
    """Returns what AUTH asks for. Raises :class:`WrongSettings` if a file cannot be used.

    ``report`` hears of sources that cannot be read later on, while their last good content serves.
    """
    match settings.effective_auth:
        case "off":
            return LocalAuthenticator()
        case "mtls":
            assert settings.auth_callers_file is not None
            try:
                return CertificateAuthenticator(settings.auth_callers_file, report)
            except WrongFile as fault:
                raise WrongSettings(f"AUTH_CALLERS_FILE: {fault}") from None
        case "jwt":
            try:
                keys = key_source(settings.auth_jwks, report)
            except WrongFile as fault:
                raise WrongSettings(f"AUTH_JWKS: {fault}") from None
            rules = TokenRules(
                settings.auth_issuer, settings.auth_audience, settings.auth_token_lifetime
            )
            return TokenAuthenticator(keys, rules)


def grpc_credentials(
    settings: Settings,
    report: Report = lambda source, fault: None,
    in_use: Callable[[float], None] = lambda expires: None,
) -> grpc.ServerCredentials | None:
    """Returns the TLS of the gRPC port, or None. Raises :class:`WrongSettings`.

    ``in_use`` gets the time (Unix) at which the certificate in use expires.
    """
    certificate, key = settings.grpc_tls_certificate_file, settings.grpc_tls_key_file
    if certificate is None or key is None:
        return None
    try:
        files = TlsFiles(certificate, key, settings.grpc_tls_client_ca_file)
        return server_credentials(files, report, in_use)
    except WrongFile as fault:
        raise WrongSettings(f"GRPC_TLS_CERTIFICATE_FILE: {fault}") from None
