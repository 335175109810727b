package server

import (
	"context"
	"crypto"
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
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/muslin-net/muslin/internal/rpc"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
)

// A node's certificate begins an hour before it is made, since clocks of nodes may be behind, and is for a day in all.
const (
	certificateBackdate = time.Hour
	certificateLife     = 24 * time.Hour
	renewAfter          = 15 * time.Hour // leaves eight hours to get a new one
)

// nodeName is the form of a node's name, RFC 1123: what Kubernetes allows too.
var nodeName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

// enroller signs certificates of nodes.
type enroller struct {
	cert   *x509.Certificate // the CA's
	key    crypto.Signer
	caFile string
	tokens tokens
}

// newEnroller reads the CA. Its certificate is the one in the CA file that the key belongs to.
func newEnroller(caFile, keyFile, tokenFile string) (*enroller, error) {
	key, err := readKey(keyFile)
	if err != nil {
		return nil, err
	}
	body, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	for block, rest := pem.Decode(body); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("CA certificate %s: %w", caFile, err)
		}
		if public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && public.Equal(key.Public()) {
			return &enroller{cert: cert, key: key, caFile: caFile, tokens: tokens{path: tokenFile}}, nil
		}
	}
	return nil, fmt.Errorf("CA key %s belongs to no certificate in %s; give the key of one of them by --ca-key", keyFile, caFile)
}

func readKey(path string) (crypto.Signer, error) {
	body, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("CA key: %w; give its path by --ca-key", err)
	}
	block, _ := pem.Decode(body)
	if block == nil {
		return nil, fmt.Errorf("CA key %s is not a PEM file", path)
	}
	var key any
	switch block.Type {
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	if err != nil {
		return nil, fmt.Errorf("CA key %s: %w", path, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("CA key %s cannot sign", path)
	}
	return signer, nil
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
func (e *enroller) sign(node string, request []byte, now time.Time) (chain []byte, err error) {
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
	begin := now.Add(-certificateBackdate)
	end := begin.Add(certificateLife)
	if e.cert.NotAfter.Before(end) {
		end = e.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: node}, NotBefore: begin, NotAfter: end,
		URIs:     []*url.URL{{Scheme: rpc.IdentityScheme, Host: roleNode, Path: "/" + node}},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, e.cert, csr.PublicKey, e.key)
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
	cert, err := s.enroller.sign(node, m.GetCertificateRequest(), now)
	if err != nil {
		return nil, err
	}
	cas, err := os.ReadFile(s.enroller.caFile)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "CA certificate: %v", err)
	}
	s.log.Info("signed a certificate", "node", node, "renewal", s.renew)
	return &typhav1.EnrollResponse{Certificate: cert, CaCertificates: cas, RenewAfter: timestamppb.New(now.Add(renewAfter))}, nil
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
			s.log.Warn("refused to enrol a node", "node", m.GetNode(), "error", err)
			return status.Error(codes.PermissionDenied, err.Error())
		}
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		return nil
	case *typhav1.EnrollRequest_ServiceAccountToken:
		return status.Error(codes.Unimplemented, "this typha has no Kubernetes to check a service-account token with; use a join token")
	}
	return status.Error(codes.InvalidArgument, "a proof is missing: give a join token")
}
