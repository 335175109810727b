package client

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"

	"github.com/muslin-net/muslin/internal/rpc"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
)

// Enrollment is how a node without a certificate gets one.
type Enrollment struct {
	// Addresses of typha's enrolment listener, as host:port.
	Addresses []string
	// ServerName that its certificate must carry; empty means the host of the address dialled.
	ServerName string
	// Trust is the file with the CA's certificate that decides whom the token is shown to; empty means that of Files.
	Trust string
	// Files say where to store certificate and key, and the CA certificates that typha answers with: more than one while the
	// CA changes.
	Files rpc.Files
	// Node to be.
	Node string
	// One of the two proves it.
	JoinToken           string
	ServiceAccountToken string
}

// Enroll gets a certificate and stores it. It returns when to renew it. A key that is there already is used again.
// ErrDenied says that the proof does not hold.
func Enroll(ctx context.Context, e Enrollment) (renew time.Time, err error) {
	request := &typhav1.EnrollRequest{Node: e.Node}
	switch {
	case e.JoinToken != "":
		request.Proof = &typhav1.EnrollRequest_JoinToken{JoinToken: e.JoinToken}
	case e.ServiceAccountToken != "":
		request.Proof = &typhav1.EnrollRequest_ServiceAccountToken{ServiceAccountToken: e.ServiceAccountToken}
	default:
		return time.Time{}, errors.New("to enrol, a node needs a join token or a service-account token")
	}
	var errs []error
	for _, address := range e.Addresses {
		config, err := enrollTLS(e, address)
		if err != nil {
			return time.Time{}, err
		}
		conn, err := rpc.Dial(address, config)
		if err != nil {
			return time.Time{}, fmt.Errorf("typha at %s: %w", address, err)
		}
		renew, err = enroll(ctx, conn, e.Files, request)
		conn.Close()
		if err == nil || !errors.Is(err, ErrUnavailable) {
			return renew, err
		}
		errs = append(errs, fmt.Errorf("typha at %s: %w", address, err))
	}
	return time.Time{}, errors.Join(errs...)
}

// Renew replaces the client's certificate, which must not have ended yet, by a new one with the same name, and returns
// when to do so again. The next connection uses it.
func (c *Client) Renew(ctx context.Context) (renew time.Time, err error) {
	err = c.call(ctx, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		renew, err = enroll(ctx, conn, c.cfg.Files, &typhav1.EnrollRequest{Node: c.cfg.Node})
		return err
	})
	return renew, err
}

func enroll(ctx context.Context, conn *grpc.ClientConn, files rpc.Files, request *typhav1.EnrollRequest) (time.Time, error) {
	key, err := keyFile(files.Key)
	if err != nil {
		return time.Time{}, err
	}
	request.CertificateRequest, err = x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{Subject: pkix.Name{CommonName: request.GetNode()}}, key)
	if err != nil {
		return time.Time{}, fmt.Errorf("certificate request: %w", err)
	}
	answer, err := typhav1.NewEnrollmentServiceClient(conn).Enroll(ctx, request)
	if err != nil {
		return time.Time{}, plain(err)
	}
	if _, err := tls.X509KeyPair(answer.GetCertificate(), pemKey(key)); err != nil {
		return time.Time{}, fmt.Errorf("the certificate that typha sent is not for this node's key: %w", err)
	}
	if cas := answer.GetCaCertificates(); x509.NewCertPool().AppendCertsFromPEM(cas) {
		if err := StoreCA(files, cas); err != nil {
			return time.Time{}, fmt.Errorf("CA certificate: %w", err)
		}
	}
	if err := replaceFile(files.Cert, answer.GetCertificate()); err != nil {
		return time.Time{}, fmt.Errorf("certificate: %w", err)
	}
	return answer.GetRenewAfter().AsTime(), nil
}

// StoreCA has those who read the files trust these CAs, PEM, from their next connection on.
func StoreCA(files rpc.Files, cas []byte) error { return replaceFile(files.CA, cas) }

// keyFile reads the key, or makes and stores one.
func keyFile(path string) (*ecdsa.PrivateKey, error) {
	b, err := os.ReadFile(path)
	if err == nil {
		if block, _ := pem.Decode(b); block != nil {
			if k, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
				if key, ok := k.(*ecdsa.PrivateKey); ok {
					return key, nil
				}
			}
		}
		return nil, fmt.Errorf("key %s is not a PEM file with an ECDSA key (PKCS #8); remove it to have a new one made", path)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("key: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	return key, replaceFile(path, pemKey(key))
}

func pemKey(key *ecdsa.PrivateKey) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(fmt.Sprintf("client: a fresh ECDSA key has no encoding: %v", err))
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// enrollTLS trusts the CA and shows no certificate: there is none yet.
func enrollTLS(e Enrollment, address string) (*tls.Config, error) {
	trust := cmp.Or(e.Trust, e.Files.CA)
	b, err := os.ReadFile(trust)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w; put the cluster's CA certificate there before enrolling", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("CA certificate %s holds no PEM certificate", trust)
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("address %q of typha is not of the form host:port", address)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: cmp.Or(e.ServerName, host),
		InsecureSkipVerify: true, // VerifyConnection makes the same check, and tells what to do when it fails
		VerifyConnection: func(s tls.ConnectionState) error {
			if err := rpc.Verify(pool, s); err != nil {
				return fmt.Errorf("%w; the token was not shown: %s must hold the CA that signed typha's certificate (its Secret's ca.crt)", err, trust)
			}
			return nil
		},
	}, nil
}
