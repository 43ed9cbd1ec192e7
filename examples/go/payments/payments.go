// Package payments opens the channel to the payment service, shows its errors as values, and follows
// its feed of events. Copy it: it knows nothing of gigs.
package payments

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // so that a replica that shuts down gets no new calls
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	pb "example.com/gigservice/gen/marketplace/payments/v1"
)

// Reads, and calls with an idempotency key, are made again after UNAVAILABLE and RESOURCE_EXHAUSTED.
// gRPC waits as long as the service asks for. The feed has no deadline and no retries: its cursor
// resumes it. Calls without a key (CreateDashboardLink, RefreshOnboarding) belong into an entry
// without a retryPolicy.
const serviceConfig = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "healthCheckConfig": {"serviceName": "marketplace.payments.v1"},
  "methodConfig": [
    {
      "name": [{"service": "marketplace.payments.v1.PaymentService"}],
      "timeout": "30s",
      "retryPolicy": {
        "maxAttempts": 5, "initialBackoff": "0.05s", "maxBackoff": "1s", "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
      }
    },
    {"name": [{"service": "marketplace.payments.v1.EventService", "method": "ListPaymentEvents"}], "timeout": "30s"}
  ],
  "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5}
}`

// Dial opens the one connection of this process. Several replicas are one name: "dns:///payments:50051".
// Plain text is for one machine and for a service mesh that encrypts.
func Dial(address, tokenFile, caFile string) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		grpc.WithDefaultServiceConfig(serviceConfig),
		// The service refuses pings that come more often than every 30 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: time.Minute, Timeout: 20 * time.Second, PermitWithoutStream: true,
		}),
	}
	transport := insecure.NewCredentials()
	if caFile != "" {
		var err error
		if transport, err = credentials.NewClientTLSFromFile(caFile, ""); err != nil {
			return nil, err
		}
	}
	options = append(options, grpc.WithTransportCredentials(transport))
	if tokenFile != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer{tokenFile, caFile != ""}))
	}
	return grpc.NewClient(address, options...)
}

// DialByEnvironment is Dial by the settings of a deployment.
func DialByEnvironment() (*grpc.ClientConn, error) {
	address := os.Getenv("PAYMENTS_ADDRESS")
	if address == "" {
		address = "127.0.0.1:50051"
	}
	return Dial(address, os.Getenv("PAYMENTS_TOKEN_FILE"), os.Getenv("PAYMENTS_CA_FILE"))
}

// bearer reads the token for each call, because the platform replaces the file before it expires.
type bearer struct {
	file   string
	secure bool
}

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := os.ReadFile(b.file)
	if err != nil {
		return nil, status.Error(codes.Unavailable, "there is no token")
	}
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(token))}, nil
}

func (b bearer) RequireTransportSecurity() bool { return b.secure }

// Refusal says why a call failed. Reason is empty if the service itself has not answered.
type Refusal struct {
	Code codes.Code
	// A name of ErrorReason without its prefix, such as EXPERT_NOT_READY.
	Reason   string
	Metadata map[string]string
	// What is wrong with each field, after InvalidArgument.
	Fields map[string]string
	// How long the service asks us to wait; 0 if it does not.
	RetryAfter time.Duration
	// The payment as it is now, after VERSION_MISMATCH.
	Payment *pb.Payment
}

// RefusalOf returns what an error of a call says.
func RefusalOf(err error) Refusal {
	found := status.Convert(err)
	refusal := Refusal{Code: found.Code(), Fields: map[string]string{}}
	for _, detail := range found.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.Domain == "payments.marketplace" {
				refusal.Reason, refusal.Metadata = detail.Reason, detail.Metadata
			}
		case *errdetails.RetryInfo:
			refusal.RetryAfter = detail.RetryDelay.AsDuration()
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				refusal.Fields[violation.Field] = violation.Description
			}
		case *pb.Payment:
			refusal.Payment = detail
		}
	}
	return refusal
}

// IsPassing returns whether the same call with the same key is worth another try, after a pause.
func (r Refusal) IsPassing() bool {
	switch r.Code {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted:
		return r.Reason != "VERSION_MISMATCH"
	case codes.Canceled, codes.Unknown, codes.Internal:
		return true // never from the service itself: a proxy or a broken connection says so
	}
	return false
}

func (r Refusal) String() string {
	if r.Reason != "" {
		return r.Reason
	}
	return r.Code.String()
}

// UntilAnswered makes a call, and repeats it until its outcome is known or the context ends. The
// request stays the same, its idempotency key included.
func UntilAnswered[Q, A any](
	ctx context.Context,
	call func(context.Context, Q, ...grpc.CallOption) (A, error),
	request Q,
) (A, error) {
	for pause := 250 * time.Millisecond; ; pause = min(2*pause, 10*time.Second) {
		answer, err := call(ctx, request)
		if err == nil || ctx.Err() != nil {
			return answer, err
		}
		refusal := RefusalOf(err)
		if !refusal.IsPassing() {
			return answer, err
		}
		wait := refusal.RetryAfter
		if wait == 0 {
			wait = jittered(pause)
		}
		log.Printf("%s: again with the same key in %s", refusal, wait.Round(time.Millisecond))
		if err := sleep(ctx, wait); err != nil {
			return answer, err
		}
	}
}

// Watch calls handle for every event after the cursor, across disconnects, until the context ends
// or handle fails.
func Watch(
	ctx context.Context,
	events pb.EventServiceClient,
	cursor string,
	handle func(*pb.WatchEventsResponse) error,
) error {
	for {
		stream, err := events.WatchEvents(ctx, &pb.WatchEventsRequest{AfterCursor: cursor})
		for err == nil {
			var update *pb.WatchEventsResponse
			if update, err = stream.Recv(); err != nil {
				break
			}
			if failed := handle(update); failed != nil {
				return fmt.Errorf("event %s.%d: %w", update.Event.PaymentId, update.Event.Sequence, failed)
			}
			cursor = update.Cursor
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !errors.Is(err, io.EOF) && !RefusalOf(err).IsPassing() {
			return err
		}
		if err := sleep(ctx, jittered(time.Second)); err != nil {
			return err
		}
	}
}

func jittered(pause time.Duration) time.Duration {
	return pause/2 + rand.N(pause/2)
}

func sleep(ctx context.Context, pause time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pause):
		return nil
	}
}
