// For a site's own OHIF 3.13 whose users log in at Isocenter and see studies by their own rights.
// Not needed for launches: those open the built-in viewer, which keeps every token on the server.
//
// 1. Serve OHIF and Isocenter from one origin, e.g. by nginx:
//      location /viewer/   { alias /srv/ohif/; try_files $uri /viewer/index.html; }
//      location /          { proxy_pass http://127.0.0.1:8080; }
// 2. Register OHIF:
//      isocenter client add --id ohif --name OHIF --public --scope "openid profile user/ImagingStudy.rs" \
//        --redirect-uri https://imaging.example.org/viewer/callback
// 3. Put this file in place of OHIF's app-config.js and write your own origin into ORIGIN.
const ORIGIN = 'https://imaging.example.org';

window.config = {
  routerBasename: '/viewer',
  showStudyList: true,
  extensions: [],
  modes: [],
  defaultDataSourceName: 'dicomweb',
  // OHIF keeps this token in the tab's sessionStorage; it ends with the login at Isocenter.
  oidc: [
    {
      authority: ORIGIN,
      client_id: 'ohif',
      redirect_uri: '/viewer/callback',
      post_logout_redirect_uri: '/viewer/',
      response_type: 'code',
      scope: 'openid profile user/ImagingStudy.rs',
      // SMART: for which resource server the token is meant.
      extraQueryParams: { aud: `${ORIGIN}/fhir` },
      automaticSilentRenew: false,
      revokeAccessTokenOnSignout: true,
    },
  ],
  dataSources: [
    {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
      sourceName: 'dicomweb',
      configuration: {
        friendlyName: 'Isocenter',
        name: 'isocenter',
        qidoRoot: `${ORIGIN}/dicom-web`,
        wadoRoot: `${ORIGIN}/dicom-web`,
        wadoUriRoot: `${ORIGIN}/dicom-web`,
        qidoSupportsIncludeField: true,
        imageRendering: 'wadors',
        thumbnailRendering: 'wadors',
        enableStudyLazyLoad: true,
        supportsFuzzyMatching: false,
        supportsWildcard: true,
        dicomUploadEnabled: false,
        omitQuotationForMultipartRequest: true,
        bulkDataURI: { enabled: true },
      },
    },
  ],
};
