package kubernetes

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

var (
	errClosed = errors.New("the datastore client is closed")
	errSlow   = errors.New("no answer in time")
)

// explain turns what client-go returned into a datastore.Error. caller is the context the caller gave: when that one has
// ended, the error is the caller's own, and nobody is to blame.
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
	default:
		e.Reason, e.Err = c.judge(key, err)
	}
	write := op == opCreate || op == opUpdate || op == opDelete
	if write && errors.Is(e.Reason, datastore.ErrUnavailable) && !neverSent(err) {
		e.Err = fmt.Errorf("%w; whether the %s was done is not known, read the object to see", e.Err, op)
	}
	return e
}

// judge says what an error means, and adds what can be done about it.
func (c *Client) judge(key api.Key, err error) (reason, cause error) {
	var status apierrors.APIStatus
	answered := errors.As(err, &status)
	switch {
	case !answered && errors.Is(err, context.DeadlineExceeded):
		return datastore.ErrUnavailable, fmt.Errorf("%s: %w; check that the API server is well", c.host, errSlow)
	case !answered && isNetwork(err):
		return datastore.ErrUnavailable, fmt.Errorf("%s: %w; %s", c.host, err, remedy(err))
	case !answered:
		return nil, err
	case apierrors.IsUnauthorized(err):
		return nil, fmt.Errorf("%s does not accept our credentials: %w; the token or certificate has expired or is another cluster's, renew it (a pod's is renewed by kubelet)", c.host, err)
	case apierrors.IsForbidden(err) && !terminating(err):
		return nil, fmt.Errorf("a right is missing: %w; give it to the account (deploy/ has the roles that are needed)", err)
	case apierrors.IsResourceExpired(err), apierrors.IsGone(err):
		return datastore.ErrCompacted, err
	case isAnother(err):
		return datastore.ErrConflict, err
	case lacksKind(err):
		return nil, fmt.Errorf("%s does not know the kind: %w; apply the CRDs, which are in deploy/chart/crds", c.host, err)
	case apierrors.IsNotFound(err) && ofNamespace(err, key):
		return nil, fmt.Errorf("%w; create the namespace first", err)
	case apierrors.IsNotFound(err):
		return datastore.ErrNotFound, nil
	case apierrors.IsAlreadyExists(err):
		return datastore.ErrExists, nil
	case apierrors.IsConflict(err):
		return datastore.ErrConflict, err
	case apierrors.IsTimeout(err), apierrors.IsServerTimeout(err), apierrors.IsTooManyRequests(err),
		apierrors.IsServiceUnavailable(err), apierrors.IsInternalError(err):
		return datastore.ErrUnavailable, fmt.Errorf("%s: %w", c.host, err)
	}
	return nil, err
}

// lacksKind tells whether the server does not serve a resource at all, as opposed to not having an object.
func lacksKind(err error) bool {
	return apierrors.IsNotFound(err) && apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse)
}

// ofNamespace tells whether it is the object's namespace that does not exist.
func ofNamespace(err error, key api.Key) bool {
	d := details(err)
	return key.Namespace != "" && d != nil && d.Kind == "namespaces" && d.Name == key.Namespace
}

// terminating tells whether a namespace that is being deleted refuses new objects.
func terminating(err error) bool { return apierrors.HasStatusCause(err, "NamespaceTerminating") }

func details(err error) *metav1.StatusDetails {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return status.Status().Details
	}
	return nil
}

// isNetwork tells whether a failure is one of reaching the server, as opposed to an answer of it.
func isNetwork(err error) bool {
	var n net.Error
	return errors.As(err, &n) || isTLS(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		utilnet.IsConnectionRefused(err) || utilnet.IsConnectionReset(err) || utilnet.IsProbableEOF(err) || utilnet.IsHTTP2ConnectionLost(err) ||
		strings.Contains(err.Error(), "http2: ")
}

func isTLS(err error) bool {
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	return errors.As(err, &authority) || errors.As(err, &name) || errors.As(err, &invalid)
}

// isAnother tells whether a patch was refused because the resource has another uid: it was deleted and made anew.
func isAnother(err error) bool {
	status, is := errors.AsType[*apierrors.StatusError](err)
	return is && status.ErrStatus.Details != nil && slices.ContainsFunc(status.ErrStatus.Details.Causes, func(c metav1.StatusCause) bool {
		return c.Field == "metadata.uid"
	})
}

// remedy says what to look at when the server cannot be reached.
func remedy(err error) string {
	var dns *net.DNSError
	switch {
	case isTLS(err):
		return "check the CA certificate (K8S_CA_FILE, or that of the kubeconfig) and the address"
	case errors.As(err, &dns):
		return "check the name in K8S_API_ENDPOINT or the kubeconfig, and DNS on this host"
	}
	return "check that the API server runs there, and K8S_API_ENDPOINT or the kubeconfig"
}

// neverSent tells whether a request cannot have reached the server.
func neverSent(err error) bool {
	var op *net.OpError
	return utilnet.IsConnectionRefused(err) || isTLS(err) || errors.As(err, &op) && op.Op == "dial"
}
