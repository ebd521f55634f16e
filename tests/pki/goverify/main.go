// What Go's crypto/x509 says of certificates, requests and revocation lists.
//
// Reads a JSON list of questions from stdin and writes the list of answers to stdout, in the same order.
package main

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"
)

// A question has one of Certificate, Request and List; they are PEM, as Roots, Intermediates and Issuer are.
type question struct {
	Certificate   string
	Roots         string
	Intermediates string
	Name          string    // empty: whatever the name
	Usage         string    // "server", "client" or "any"
	Time          time.Time // zero: now
	Request       string
	List          string
	Issuer        string // of the list
}

type answer struct {
	Error     string   `json:"error"` // empty: good
	Chains    int      `json:"chains"`
	DNS       []string `json:"dns"`
	Addresses []string `json:"addresses"`
	Emails    []string `json:"emails"`
	URIs      []string `json:"uris"`
	Subject   string   `json:"subject"`
	Serials   []string `json:"serials"` // decimal: the certificate's own, or those that a list revokes
}

var usages = map[string]x509.ExtKeyUsage{
	"server": x509.ExtKeyUsageServerAuth,
	"client": x509.ExtKeyUsageClientAuth,
	"any":    x509.ExtKeyUsageAny,
}

func block(text, label string) ([]byte, error) {
	found, rest := pem.Decode([]byte(text))
	if found == nil {
		return nil, errors.New("no PEM")
	}
	if found.Type != label {
		return nil, fmt.Errorf("PEM of a %s, not of a %s", found.Type, label)
	}
	if next, _ := pem.Decode(rest); next != nil {
		return nil, errors.New("more than one PEM block")
	}
	return found.Bytes, nil
}

func certificate(text string) (*x509.Certificate, error) {
	der, err := block(text, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// AppendCertsFromPEM would pass over certificates that Go cannot read.
func pool(text string) (*x509.CertPool, error) {
	found := x509.NewCertPool()
	rest := []byte(text)
	for {
		var one *pem.Block
		if one, rest = pem.Decode(rest); one == nil {
			return found, nil
		}
		parsed, err := x509.ParseCertificate(one.Bytes)
		if err != nil {
			return nil, fmt.Errorf("a CA: %w", err)
		}
		found.AddCert(parsed)
	}
}

func verify(asked question, said *answer) error {
	leaf, err := certificate(asked.Certificate)
	if err != nil {
		return err
	}
	said.DNS, said.Emails, said.Subject = leaf.DNSNames, leaf.EmailAddresses, leaf.Subject.String()
	said.Serials = []string{leaf.SerialNumber.String()}
	for _, address := range leaf.IPAddresses {
		said.Addresses = append(said.Addresses, address.String())
	}
	for _, uri := range leaf.URIs {
		said.URIs = append(said.URIs, uri.String())
	}
	usage, known := usages[asked.Usage]
	if !known {
		return fmt.Errorf("unknown usage %q", asked.Usage)
	}
	options := x509.VerifyOptions{DNSName: asked.Name, CurrentTime: asked.Time, KeyUsages: []x509.ExtKeyUsage{usage}}
	if options.Roots, err = pool(asked.Roots); err != nil {
		return err
	}
	if options.Intermediates, err = pool(asked.Intermediates); err != nil {
		return err
	}
	chains, err := leaf.Verify(options)
	said.Chains = len(chains)
	return err
}

func request(asked question, said *answer) error {
	der, err := block(asked.Request, "CERTIFICATE REQUEST")
	if err != nil {
		return err
	}
	parsed, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return err
	}
	said.DNS, said.Emails, said.Subject = parsed.DNSNames, parsed.EmailAddresses, parsed.Subject.String()
	for _, address := range parsed.IPAddresses {
		said.Addresses = append(said.Addresses, address.String())
	}
	for _, uri := range parsed.URIs {
		said.URIs = append(said.URIs, uri.String())
	}
	return parsed.CheckSignature()
}

func list(asked question, said *answer) error {
	der, err := block(asked.List, "X509 CRL")
	if err != nil {
		return err
	}
	issuer, err := certificate(asked.Issuer)
	if err != nil {
		return err
	}
	parsed, err := x509.ParseRevocationList(der)
	if err != nil {
		return err
	}
	for _, one := range parsed.RevokedCertificates {
		said.Serials = append(said.Serials, one.SerialNumber.String())
	}
	return parsed.CheckSignatureFrom(issuer)
}

func reply(asked question) (said answer) {
	var err error
	switch {
	case asked.Certificate != "":
		err = verify(asked, &said)
	case asked.Request != "":
		err = request(asked, &said)
	case asked.List != "":
		err = list(asked, &said)
	default:
		err = errors.New("nothing was asked")
	}
	if err != nil {
		said.Error = err.Error()
	}
	return said
}

func main() {
	var questions []question
	reader := json.NewDecoder(os.Stdin)
	reader.DisallowUnknownFields()
	if err := reader.Decode(&questions); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	answers := []answer{}
	for _, asked := range questions {
		answers = append(answers, reply(asked))
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}
