package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/muslin-net/muslin/internal/rpc"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/authority"
)

// A node's certificate begins an hour before it is made, since clocks of nodes may be behind, and is for a day in all.
const (
	certificateBackdate = time.Hour
	certificateLife     = 23 * time.Hour // from now; a third of it is left to get a new one
)

// nodeName is the form of a node's name, RFC 1123: what Kubernetes allows too.
var nodeName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

// TokenReviewer says what the service-account tokens prove that nodes enrol with.
type TokenReviewer interface {
	// Node is the node that a token is bound to. refused says why the token proves nothing, empty if it does; the error why it
	// cannot be told at present.
	Node(ctx context.Context, token string) (node, refused string, err error)
}

// reviewsAtOnce bounds the reviews of tokens that are under way: whoever reaches the listener can ask for one.
const reviewsAtOnce = 16

// maxToken is how long a service-account token may be; they have some 1200 characters.
const maxToken = 16 << 10

// enroller signs certificates of nodes.
type enroller struct {
	caFile, keyFile string
	tokens          tokens
	reviewer        TokenReviewer // nil where there is no Kubernetes
	reviews         *semaphore.Weighted
}

func newEnroller(caFile, keyFile, tokenFile string, reviewer TokenReviewer) (*enroller, error) {
	e := &enroller{
		caFile: caFile, keyFile: keyFile, tokens: tokens{path: tokenFile}, reviewer: reviewer, reviews: semaphore.NewWeighted(reviewsAtOnce),
	}
	_, err := e.ca()
	return e, err
}

// ca reads the CA. It is read anew for each certificate, so that one that has been replaced signs no more.
func (e *enroller) ca() (authority.CA, error) {
	key, err := os.ReadFile(e.keyFile)
	if err != nil {
		return authority.CA{}, fmt.Errorf("CA key: %w; give its path by --ca-key", err)
	}
	certs, err := os.ReadFile(e.caFile)
	if err != nil {
		return authority.CA{}, fmt.Errorf("CA certificate: %w", err)
	}
	ca := authority.CA{Certs: certs, Key: key}
	if _, _, err := ca.Signer(); err != nil {
		return authority.CA{}, fmt.Errorf("CA certificate %s with CA key %s: %w; give the key of one of the certificates by --ca-key", e.caFile, e.keyFile, err)
	}
	return ca, nil
}

// tls is for the listener without client certificates.
func (e *enroller) tls(files rpc.Files) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { // read anew, so that a rotated one is used
			pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
			return &pair, err
		},
	}
}

// sign makes a node's certificate for the key of a request. Nothing else of the request counts.
func (e *enroller) sign(ca authority.CA, node string, request []byte, now, end time.Time) (chain []byte, err error) {
	parent, signer, err := ca.Signer()
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(request)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "the certificate request is not a valid PKCS #10 request: %v", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	if parent.NotAfter.Before(end) {
		end = parent.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: node}, NotBefore: now.Add(-certificateBackdate), NotAfter: end,
		URIs:     []*url.URL{{Scheme: rpc.IdentityScheme, Host: roleNode, Path: "/" + node}},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, csr.PublicKey, signer)
	if err != nil {
		return nil, fmt.Errorf("signing the certificate of node %s: %w", node, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// enrollmentService signs certificates. On the main listener (renew) the proof is the certificate that the node has; on
// its own listener, which asks for none, it is a token.
type enrollmentService struct {
	typhav1.UnimplementedEnrollmentServiceServer
	*Server
	renew bool
}

// Enroll signs a certificate for a node that proves who it is.
func (s enrollmentService) Enroll(ctx context.Context, m *typhav1.EnrollRequest) (*typhav1.EnrollResponse, error) {
	node := m.GetNode()
	if !nodeName.MatchString(node) || len(node) > 253 {
		return nil, status.Errorf(codes.InvalidArgument, "%q is no node name: write lower-case letters, digits, dashes and dots", node)
	}
	now := time.Now()
	if err := s.proven(ctx, m, now); err != nil {
		return nil, err
	}
	ca, err := s.enroller.ca()
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error()) // it is being replaced, perhaps
	}
	life := cmp.Or(s.cfg.CertificateLife, certificateLife)
	cert, err := s.enroller.sign(ca, node, m.GetCertificateRequest(), now, now.Add(life))
	if err != nil {
		return nil, err
	}
	s.log.Info("signed a certificate", "node", node, "renewal", s.renew)
	return &typhav1.EnrollResponse{Certificate: cert, CaCertificates: ca.Certs, RenewAfter: timestamppb.New(now.Add(life / 3 * 2))}, nil
}

// proven checks the proof. A join token is used up by it, so all else about the request is checked first.
func (s enrollmentService) proven(ctx context.Context, m *typhav1.EnrollRequest, now time.Time) error {
	if s.renew {
		name, err := callingNode(ctx)
		if err == nil && name != m.GetNode() {
			err = status.Errorf(codes.PermissionDenied, "the certificate is for node %q, which cannot get one for node %q", name, m.GetNode())
		}
		return err
	}
	if csr, err := x509.ParseCertificateRequest(m.GetCertificateRequest()); err != nil || csr.CheckSignature() != nil {
		return status.Error(codes.InvalidArgument, "the certificate request is not a valid PKCS #10 request")
	}
	switch proof := m.GetProof().(type) {
	case *typhav1.EnrollRequest_JoinToken:
		err := s.enroller.tokens.redeem(proof.JoinToken, m.GetNode(), now)
		if errors.Is(err, errToken) {
			return status.Errorf(codes.PermissionDenied, "node %q: %v", m.GetNode(), err)
		}
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		return nil
	case *typhav1.EnrollRequest_ServiceAccountToken:
		return s.bound(ctx, proof.ServiceAccountToken, m.GetNode())
	}
	return status.Error(codes.InvalidArgument, "a proof is missing: give a join token, or a service-account token")
}

// bound checks that a service-account token is bound to a node.
func (s enrollmentService) bound(ctx context.Context, token, node string) error {
	e := s.enroller
	if e.reviewer == nil {
		return status.Error(codes.Unimplemented, "this typha has no Kubernetes to check a service-account token with; use a join token, or give typha a kubeconfig")
	}
	if len(token) > maxToken || strings.Count(token, ".") != 2 {
		return status.Error(codes.PermissionDenied, "what was given as service-account token is none")
	}
	if err := e.reviews.Acquire(ctx, 1); err != nil {
		return status.FromContextError(err).Err()
	}
	of, refused, err := e.reviewer.Node(ctx, token)
	e.reviews.Release(1)
	switch {
	case err != nil:
		s.log.Warn("a service-account token cannot be checked", "node", node, "error", err)
		return status.Errorf(codes.Unavailable, "the service-account token cannot be checked now: %v", err)
	case refused == "" && of != node:
		refused = fmt.Sprintf("the service-account token is bound to node %q, and gets no certificate for node %q; "+
			"the node's name (NODENAME) must be that of the Kubernetes node on which the pod runs", of, node)
	}
	if refused != "" {
		return status.Error(codes.PermissionDenied, refused)
	}
	return nil
}
