package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

var errClosed = errors.New("the datastore client is closed")

// explain turns what etcd's client returned into a datastore.Error. caller is the context the caller gave: when that one
// has ended, the error is the caller's own, and nobody is to blame.
func (c *Client) explain(caller context.Context, op string, key api.Key, err error) error {
	var done *datastore.Error
	if err == nil || errors.As(err, &done) {
		return err
	}
	e := &datastore.Error{Op: op, Key: key}
	switch {
	case c.ctx.Err() != nil:
		e.Err = errClosed
	case errors.Is(caller.Err(), context.Canceled):
		e.Err = caller.Err()
	case isUnavailable(err):
		e.Reason, e.Err = datastore.ErrUnavailable, errors.New(c.diagnose(err))
	case isAnswer(err, rpctypes.ErrNoSpace):
		e.Reason, e.Err = datastore.ErrFull, c.advise(err)
	default:
		e.Err = c.advise(err)
	}
	if errors.Is(e.Reason, datastore.ErrUnavailable) && !errors.Is(err, errNotConnected) && (op == opCreate || op == opUpdate || op == opDelete) {
		e.Err = fmt.Errorf("%w; whether the %s was done is not known, read the object to see", e.Err, op)
	}
	return e
}

// isUnavailable tells whether the failure is one of reaching a working etcd, as opposed to an answer of it.
func isUnavailable(err error) bool {
	if errors.Is(err, errNotConnected) || isAnswer(err, context.DeadlineExceeded) { // servers send that text with code Unknown
		return true
	}
	if rpc, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		return rpc.Code() == codes.Unavailable || rpc.Code() == codes.DeadlineExceeded
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded:
		return true
	}
	return false
}

// isAnswer tells whether an error is a certain answer of etcd. Depending on the way it took, only its text is left of it.
func isAnswer(err, answer error) bool {
	return err != nil && (errors.Is(err, answer) || strings.HasSuffix(err.Error(), answer.Error()))
}

// advise adds to an answer of etcd what the operator can do about it.
func (c *Client) advise(err error) error {
	for _, a := range []struct {
		err    error
		advice string
	}{
		{rpctypes.ErrPermissionDenied, fmt.Sprintf("grant the etcd role of user %q readwrite on prefix %s", c.cfg.Username, root)},
		{rpctypes.ErrUserEmpty, "etcd asks for authentication; set ETCD_USERNAME and ETCD_PASSWORD"},
		{rpctypes.ErrAuthFailed, "correct ETCD_USERNAME and ETCD_PASSWORD"},
		{rpctypes.ErrInvalidAuthToken, "correct ETCD_USERNAME and ETCD_PASSWORD"},
		{rpctypes.ErrRequestTooLarge, "make the object smaller, or raise etcd's --max-request-bytes"},
		{rpctypes.ErrNoSpace, "compact and defragment etcd, then clear its alarm: etcdctl alarm disarm"},
	} {
		if isAnswer(err, a.err) {
			return fmt.Errorf("%w; %s", err, a.advice)
		}
	}
	return err
}

// diagnose says in one line why no answer came: it tries each endpoint, and names what it met.
func (c *Client) diagnose(cause error) string {
	ctx, cancel := context.WithTimeout(c.ctx, probeTime)
	defer cancel()
	found := make(chan string, len(c.eps))
	for _, ep := range c.eps {
		go func() {
			if fault := c.probe(ctx, ep); fault != "" {
				found <- ep + ": " + fault
			} else {
				found <- ""
			}
		}()
	}
	var faults []string
	for range c.eps {
		if f := <-found; f != "" {
			faults = append(faults, f)
		}
	}
	if len(faults) > 0 {
		return strings.Join(faults, "; ") + "; check that etcd runs there, and ETCD_ENDPOINTS"
	}
	msg := status.Convert(cause).Message()
	if errors.Is(cause, errNotConnected) || isAnswer(cause, context.DeadlineExceeded) {
		msg = "no answer in time"
	}
	return fmt.Sprintf("%s: %s; it accepts connections but may have no leader, ask it: etcdctl endpoint health",
		strings.Join(c.eps, ","), msg)
}
