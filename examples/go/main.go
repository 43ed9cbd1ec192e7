// A gig service's payment from booking to payout, and the feed of events:
//
//	go run . gig GIG [EXPERT [CLIENT]]
//	go run . follow
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	pb "example.com/gigservice/gen/marketplace/payments/v1"
	"example.com/gigservice/payments"
)

//go:generate buf generate

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	channel, err := payments.DialByEnvironment()
	if err != nil {
		log.Fatal(err)
	}
	defer channel.Close()
	given := append(os.Args[1:], make([]string, 4)...)
	switch given[0] {
	case "follow":
		err = follow(ctx, pb.NewEventServiceClient(channel))
	case "gig":
		err = gig(ctx, pb.NewPaymentServiceClient(channel), or(given[1], "logo"), or(given[2], "ann"), or(given[3], "bob"))
	default:
		err = errors.New("usage: go run . gig GIG [EXPERT [CLIENT]], or go run . follow")
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		log.Fatal(err)
	}
}

func gig(ctx context.Context, service pb.PaymentServiceClient, gig, expert, client string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	// 1. Book. The key comes from the gig: a restarted process repeats this call and gets its answer.
	initiated, err := payments.UntilAnswered(ctx, service.InitiatePayment, &pb.InitiatePaymentRequest{
		ClientId:       client,
		ExpertId:       expert,
		GigId:          gig,
		Amount:         &pb.Money{MinorUnits: 10_000, CurrencyCode: "USD"},
		OnDeadline:     pb.OnDeadline_ON_DEADLINE_CAPTURE,
		IdempotencyKey: "initiate-" + gig,
	})
	if err != nil {
		return err
	}
	id := initiated.Payment.PaymentId
	fmt.Println("initiated", id)

	// 2. The client pays in the browser, with the secret that we hand over.
	if err := payAsTheBrowserDoes(ctx, initiated); err != nil {
		return err
	}

	// 3. Wait until the money is secured. The browser's word is not enough. A service does not poll:
	// it follows the feed, and reads a payment when an event says that it has changed.
	for state := pb.PaymentState_PAYMENT_STATE_PENDING; isUnpaid(state); time.Sleep(250 * time.Millisecond) {
		read, err := payments.UntilAnswered(ctx, service.GetPaymentStatus, &pb.GetPaymentStatusRequest{PaymentId: id})
		if err != nil {
			return err
		}
		state = read.State
	}

	// 4. The gig is done. Twice with the same key is once.
	request := &pb.CapturePaymentRequest{PaymentId: id, Notes: "accepted by the client", IdempotencyKey: "accept-" + gig}
	for _, time := range []string{"first", "second"} {
		captured, err := payments.UntilAnswered(ctx, service.CapturePayment, request)
		if err != nil {
			return err
		}
		fmt.Printf("%s answer: %s, version %d\n", time, name(captured.Payment.State), captured.Payment.Version)
	}

	// 5. With another key it is another capture, and is refused with the facts.
	request.IdempotencyKey += "-again"
	_, err = payments.UntilAnswered(ctx, service.CapturePayment, request)
	switch refusal := payments.RefusalOf(err); refusal.Reason {
	case "WRONG_STATE":
		fmt.Printf("refused: %s, the payment is %s\n", refusal.Reason, refusal.Metadata["state"])
		return nil
	case "EXPERT_NOT_READY":
		fmt.Println("ask the expert for:", refusal.Metadata["requirements_due"])
		return nil
	}
	return err
}

// follow prints every event once. A service keeps its cursor in its database, in the transaction
// with what it did about the event.
func follow(ctx context.Context, events pb.EventServiceClient) error {
	const file = "feed.cursor"
	cursor, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	return payments.Watch(ctx, events, string(cursor), func(update *pb.WatchEventsResponse) error {
		// Handle it here, once for each payment and sequence. Ignore kinds that you do not know.
		fmt.Printf("%s.%d %s\n", update.Event.PaymentId, update.Event.Sequence, update.Event.Kind)
		if err := os.WriteFile(file+".new", []byte(update.Cursor), 0o600); err != nil {
			return err
		}
		return os.Rename(file+".new", file)
	})
}

// payAsTheBrowserDoes sends what Stripe.js sends. Without a simulator a person opens the pay page:
// see examples/checkout.
func payAsTheBrowserDoes(ctx context.Context, initiated *pb.InitiatePaymentResponse) error {
	simulator := os.Getenv("SIMULATOR_URL")
	if simulator == "" {
		fmt.Println("now pay with the client secret")
		return nil
	}
	intent, _, _ := strings.Cut(initiated.ClientSecret, "_secret_")
	form := url.Values{
		"key":            {initiated.PublishableKey},
		"client_secret":  {initiated.ClientSecret},
		"payment_method": {"pm_card_visa"},
	}
	address := simulator + "/v1/payment_intents/" + intent + "/confirm"
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	// 400: it was paid before, because this process was started again.
	fmt.Println("the browser:", answer.Status)
	return nil
}

func isUnpaid(state pb.PaymentState) bool {
	return state == pb.PaymentState_PAYMENT_STATE_PENDING || state == pb.PaymentState_PAYMENT_STATE_FAILED
}

func name(state pb.PaymentState) string {
	return strings.TrimPrefix(state.String(), "PAYMENT_STATE_")
}

func or(given, otherwise string) string {
	if given == "" {
		return otherwise
	}
	return given
}
